"""Every registered method at tiny size, and variants of its options that change its structure."""

import torch
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.methods.base import Method
from intclip.methods.registry import METHODS, build_method, method_options

DECODER = {"dim": 8, "heads": 2, "feedforward": 12}
FROZEN = {"train": "none", "space": "joint"}
WHERE = {"objects": ["class 0", "class 1"], "contexts": ["class 2"]}
MCCL = {"pool": {"prototypes": 12, "patches": 40}, "decoder": DECODER}
SMALL: dict[str, dict[str, object]] = {
    "cocoop": {"reduction": 1, "scale": 10},  # a single hidden unit may be dead
    "mccl": MCCL,
    "sst": {"dim": 8, "inner": 6},
    "intentonomy": WHERE,
    "pipnet": {"prototypes": 2},
    "cpad": {"dim": 8},
    # "max" trains only the level with the largest loss
    "hleg": {"levels": "sum"},
    "multiguard": {"sigma": 0.1},
    "sparc": {"partners": 2},
    "wseip": {"dim": 8},
    "msrca": {"dim": 8, "heads": 2, "regions": [3, 2, 1]},
    "cglf_net": {"dim": 8, "heads": 2},
    "fame_vil": {"bottleneck": 4},
    "ensemble": {
        "members": [
            {"method": "intclip", "options": {"context_length": 3}},
            {"method": "dualcoop", "options": {"context_length": 3}},
        ]
    },
}
"""Options that methods need for five labels and eight channels."""

OTHERS: dict[str, tuple[str, dict[str, object]]] = {
    "ridge_probe kernel": ("ridge_probe", {"landmarks": 6}),
    "intclip over levels": ("intclip", {"label_transformer": True, "period": True, "context_length": 3}),
    "mccl frozen, gated": ("mccl", {**MCCL, "train": "none", "stages": [1, 2, 3], "gates": "photo"}),
    "mccl learned prototypes": ("mccl", {**MCCL, "gates": "learned", "pool": {**MCCL["pool"], "update": "gradient"}}),
    "mccl added": ("mccl", {**MCCL, "graph_layers": 0, "pool": {**MCCL["pool"], "composition": "add"}}),
    "mccl uncomposed": ("mccl", {**MCCL, "text_encoder": "random", "pool": {**MCCL["pool"], "composition": "none"}}),
    "query2label text": (
        "query2label",
        {"decoder": {**DECODER, "self_attention": True}, "queries": "text", "visual": FROZEN},
    ),
    "sst frozen": ("sst", {"dim": 8, "inner": 6, "visual": FROZEN, "cooccurrence": 0}),
    "asl_resnet joint": ("asl_resnet", {"visual": {"space": "joint"}}),
    "multiguard mccl": ("multiguard", {"sigma": 0.1, "samples": 2, "method": "mccl", "options": MCCL}),
    "intentonomy hashtags": ("intentonomy", {**WHERE, "hashtags": True, "text_dropout": 0}),
    "cpad frozen, equal": ("cpad", {"dim": 8, "train": "none", "weighting": "equal", "alignment": 0, "levels": 1}),
    "hleg frozen": ("hleg", {"decoder": DECODER, "levels": "sum", "visual": FROZEN}),
    "hleg text": ("hleg", {"decoder": DECODER, "levels": "sum", "queries": "text"}),
    "labcr text": ("labcr", {"decoder": DECODER, "queries": "text", "visual": FROZEN}),
    "coop dual": ("coop", {"context_length": 3, "prompts": "dual", "class_specific": True}),
    "negative_coop": ("positive_coop", {"context_length": 3, "learned": "negative"}),
    "intclip free negative": ("intclip", {"context_length": 3, "negative": "free"}),
    "dualcoop_pp boost": ("dualcoop_pp", {"context_length": 3, "winner": "boost"}),
    "fdil without teacher": ("fdil", {"distillation": 0, "rerank": 0}),
    "ridge_probe pooled": ("ridge_probe", {"vector": "pooled"}),
    "wseip frozen": ("wseip", {"dim": 8, "train": "none"}),
    "msrca frozen": ("msrca", {"dim": 8, "heads": 2, "train": "none"}),
    "fame_vil without cross-attention": ("fame_vil", {"bottleneck": 4, "cross_attention": False}),
    "tip_adapter_f": ("tip_adapter", {"fine_tune": True}),
}
"""Further variants by name: method and options."""


def small(name: str) -> dict[str, object]:
    """Return options that make a method small."""
    fields = method_options(name).model_fields
    short = {"context_length": 3} if "context_length" in fields else {}
    decoder = {"decoder": DECODER} if "decoder" in fields else {}
    return {**short, **decoder, **SMALL.get(name, {})}


OWN = [name for name, place in METHODS.items() if place.startswith("intclip.")]
"""Names of packaged methods; a test may register a toy."""
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {name: (name, small(name)) for name in OWN} | OTHERS


def built(variant: str, backbone: TinyBackbone, classes: int = 5) -> Method:
    """Build a variant, untrained."""
    torch.manual_seed(1)
    name, options = VARIANTS[variant]
    if classes < 3:  # those that name labels
        options = {key: value for key, value in options.items() if key not in WHERE}
    return build_method(name, backbone, tiny_taxonomy(classes), options)


def batch(method: Method, photos: int = 6, seed: int = 0) -> tuple[Features, Tensor]:
    """Return features of random photos with all additional inputs; one label is unknown, one photo has all labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(photos, 3, 24, 24, generator=generator)
    targets = (torch.rand(photos, len(method.taxonomy), generator=generator) < 0.4).float()
    targets[1] = 1
    targets[0, 0] = float("nan")
    features = method.backbone.features(pixels, method.needs)
    if "mask" in method.extra_inputs:
        features["mask"] = torch.rand(photos, 1, 24, 24, generator=generator)
        features["mask"][2] = torch.nan
    if "text" in method.extra_inputs:
        features["text"] = torch.randn(photos, 8, generator=generator)
    if "words" in method.extra_inputs:
        features["words"] = torch.randn(photos, 3, 8, generator=generator)
    return features, targets
