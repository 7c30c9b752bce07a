"""Record the output of timm's and open_clip's own code in `recorded/`. Run manually; the tests only read the files.

    pip download --no-deps --dest /tmp/timm timm==1.0.31 open-clip-torch==3.3.0
    for wheel in /tmp/timm/*.whl; do python -m zipfile -e $wheel /tmp/timm; done
    PYTHONPATH=src python tests/backbones/record_timm.py /tmp/timm

Both import torchvision for transforms and operators that these models do not use: an empty module replaces it.
Recorded with Python 3.11 and torch 2.13.0 (CPU).
"""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from seeded import SMALL_VIT, seeded_state, token_rows, values
from torch import Tensor, nn

HERE = Path(__file__).parent / "recorded"
DIM = 24
IMAGE_SIZE = 48


class Named(type):
    """A class that has every attribute: its name (members of enumerations)."""

    def __getattr__(cls, name: str) -> str:
        return name


class Empty(ModuleType):
    """A module with every name, each an empty layer."""

    def __getattr__(self, name: str) -> type[nn.Module]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Named(name, (nn.Module,), {})


def without_torchvision() -> None:
    parts = ("", ".datasets", ".models", ".models.feature_extraction", ".ops", ".ops.misc", ".transforms")
    for name in (*parts, ".transforms.functional"):
        module = Empty(f"torchvision{name}")
        module.__path__ = []
        module.__spec__ = ModuleSpec(module.__name__, None)
        sys.modules[module.__name__] = module
        parent, _, own = module.__name__.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)


def image_towers() -> dict[str, nn.Module]:
    """Small models of timm's own code: names of `TRAITS`, and "mobileclip_fused" for the form for inference."""
    import timm
    from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid
    from timm.utils import reparameterize_model

    width, depth = 128, 3
    vit = {"img_size": IMAGE_SIZE, "embed_dim": width, "depth": depth, "num_heads": 2, "num_classes": DIM}
    stages = {"layers": (2, 1, 2, 2), "embed_dims": (16, 32, 64, 128), "num_classes": DIM}
    stem = ConvStem(
        channels=(width // 4, width // 4, width), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU
    )
    return {
        "eva02": timm.create_model("eva02_base_patch16_clip_224", **vit),
        # Positions are not scaled at the size that a model was trained for.
        "pe": timm.create_model("vit_pe_core_base_patch16_224", ref_feat_shape=(3, 3), **vit),
        "mobileclip": timm.create_model("fastvit_mci0", **stages),
        "mobileclip_fused": reparameterize_model(timm.create_model("fastvit_mci0", **stages).eval()),
        "mobileclip_vit": _create_vision_transformer_hybrid(
            "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, no_embed_class=True, **vit
        ),
    }


def text_tower(family: str) -> nn.Module:
    from open_clip.transformer import TextTransformer

    sizes = SMALL_VIT
    return TextTransformer(
        context_length=sizes.context_length,
        vocab_size=sizes.vocab_size,
        width=sizes.text_width,
        heads=1,
        layers=sizes.text_layers,
        output_dim=DIM,
        no_causal_mask=family.startswith("mobileclip") and family != "mobileclip_vit",
    )


def regions(family: str, tower: nn.Module, features: Tensor) -> Tensor:
    """Return (B, HW, D): the modules after the last norm or convolution, applied to each position separately."""
    if features.ndim == 4:
        return tower.head.fc(features.flatten(2).transpose(1, 2))
    if family == "pe":
        value = tower.attn_pool.kv(features[:, 1:]).chunk(2, dim=-1)[1]
        return nn.functional.normalize(tower.head(tower.attn_pool.proj(value)), dim=-1)
    return tower.head(features[:, 1:])


def main(folder: Path) -> None:
    without_torchvision()
    sys.path.insert(0, str(folder))
    keys, recorded = {}, {}
    for family, tower in image_towers().items():
        model = nn.ModuleDict({"visual": nn.ModuleDict({"trunk": tower}), "text": text_tower(family)}).eval()
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if ".rope." not in key}
        state = seeded_state(shapes)
        if family == "pe":
            state["visual.trunk.head.bias"].zero_()  # Meta's weights have none
        model.load_state_dict(state, strict=False)
        photos = values("photo", (2, 3, IMAGE_SIZE, IMAGE_SIZE))
        if family.startswith("mobileclip") and family != "mobileclip_vit":
            photos = values("photo", (2, 3, 96, 96))
        with torch.no_grad():
            recorded[f"{family}.image"] = tower(photos)
            recorded[f"{family}.regions"] = regions(family, tower, tower.forward_features(photos))
            recorded[f"{family}.text"] = model["text"](token_rows(SMALL_VIT))
        keys[family] = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    (HERE / "timm_keys.json").write_text(json.dumps(keys) + "\n")
    save_file({key: tensor.contiguous() for key, tensor in recorded.items()}, HERE / "timm.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
