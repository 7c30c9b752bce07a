"""One tiny random model of every family of backbones in the registry: the columns of tables over backbones."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from tokenizers import Tokenizer
from torch import nn

from intclip.backbones import efficientnet_lite, lite
from intclip.backbones.architecture import ARCHITECTURES, Architecture
from intclip.backbones.base import Backbone
from intclip.backbones.clip import random_clip
from intclip.backbones.families import TRAITS
from intclip.backbones.lite_towers import LITE_BACKBONES, LITE_TOWERS, TEXT_PACKAGE, package_folder
from intclip.backbones.minilm import MiniLM
from intclip.backbones.wordpieces import load_tokenizer

_TEXT = {"text_width": 16, "text_layers": 2, "text_heads": 2}
_RESNET = Architecture(8, 64, (1, 1, 1, 1), 8, None, **_TEXT)
_VIT = Architecture(8, 32, 2, 16, 16, vision_heads=2, **_TEXT)
_IMAGE_SIZE = 64
_CHANNELS = 64
"""Of the last map of one embedded tower, which has 1,280: heads as wide as that would take seconds to convert."""
CLASSES = 20
"""Number of classes of the image towers' classifier, of which the head uses ten."""
_OTHERS: dict[str, Architecture] = {
    "MetaCLIP 2": replace(_VIT, vocab_size=200, end_token=2, family="metaclip2"),
    "SigLIP": replace(_VIT, embed_dim=16, context_length=64, vocab_size=200, activation="gelu_tanh", family="siglip"),
    "EVA-02-CLIP": replace(_VIT, vision_mlp=24, activation="gelu", family="eva02"),
    "Perception Encoder": replace(_VIT, context_length=40, activation="gelu", family="pe"),
    "TIPS v2": replace(_VIT, embed_dim=16, context_length=64, vocab_size=200, registers=1, family="tipsv2"),
    "MobileCLIP 2 S": replace(_RESNET, activation="gelu", family="mobileclip"),
    "MobileCLIP 2 B": replace(_VIT, activation="gelu", family="mobileclip_vit"),
}
"""By the title of `TRAITS`."""


def tiny_lite(name: str) -> Backbone:
    """Return an embedded backbone with few channels, for photos of 64 pixels, with the real tokenizer."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        for tower, sizes in LITE_TOWERS.items():
            patch.setitem(LITE_TOWERS, tower, sizes._replace(width=sizes.width / 4, depth=sizes.depth / 3))
        patch.setattr(efficientnet_lite, "HEAD_CHANNELS", _CHANNELS)
        backbone = lite.LiteBackbone("paper", name)
        towers = len(LITE_BACKBONES[name].towers)
        tokenizer = real_tokenizer()
        words = MiniLM(
            tokenizer, vocabulary=tokenizer.get_vocab_size(), positions=64, width=8, hidden=16, layers=2, heads=2
        )
        backbone.text, backbone.embed_dim = words, 8
        channels = towers * _CHANNELS
        backbone.head = lite.LiteHead((torch.empty(CLASSES, channels), torch.empty(CLASSES), torch.empty(CLASSES, 8)))
        backbone.to_empty(device="cpu")
        seed(backbone)
    backbone.take(backbone.preprocess.model_copy(update={"size": _IMAGE_SIZE}))
    backbone.freeze()
    return backbone


@cache
def real_tokenizer() -> Tokenizer:
    """Return the tokenizer of the embedded backbones, which takes a quarter of a second to read."""
    return load_tokenizer(package_folder(TEXT_PACKAGE) / "model" / "tokenizer.json")


def seed(module: nn.Module) -> None:
    """Set random weights that keep activations at normal scale."""
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if name.endswith("var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                fan_in = tensor[0].numel() if tensor.dim() > 1 else 100
                tensor.normal_(0, (2 / fan_in) ** 0.5)
            if name.endswith(("scale", "norm.weight")):
                tensor.add_(1)


FAMILIES: dict[str, Callable[[], Backbone]] = {
    "CLIP ResNet": lambda: random_clip(_RESNET),
    "CLIP ViT": lambda: random_clip(_VIT),
    **{title: partial(random_clip, sizes) for title, sizes in _OTHERS.items()},
    "lite": lambda: tiny_lite("lite"),
    "side by side": lambda: tiny_lite("lite+lite2"),
}
"""Add a new family here and to `family_of`, so that every table over backbones includes it."""


def family_of(name: str) -> str:
    """The family of a registered backbone.

    Raises:
        KeyError: The family is not in `FAMILIES` yet.
    """
    if name in LITE_BACKBONES:
        return "lite" if len(LITE_BACKBONES[name].towers) == 1 else "side by side"
    architecture = ARCHITECTURES[name]
    if architecture.family != "clip":
        return TRAITS[architecture.family].title
    return "CLIP ResNet" if architecture.patch_size is None else "CLIP ViT"
