"""The table of backbones in docs/backbones.md: architecture, size, and trainable parameters.

PYTHONPATH=src python -m benchmarks.splits
"""

import torch
from torch import nn

from intclip.backbones.architecture import ARCHITECTURES, Architecture
from intclip.backbones.clip import ClipBackbone
from intclip.backbones.families import TRAITS


def rows() -> list[str]:
    """Return a Markdown row per backbone, without loading weights."""
    return [row(name, architecture) for name, architecture in ARCHITECTURES.items()]


def row(name: str, architecture: Architecture) -> str:
    with torch.device("meta"):
        paper, released = (ClipBackbone(architecture, split) for split in ("paper", "released"))
    side, grid = architecture.image_size, architecture.grid
    cells = [f"`{name}`", tower(architecture), side, f"{grid} × {grid}", architecture.embed_dim]
    cells += [f"{millions(paper)} M", deep(paper)]
    cells += [deep(released) if parts(released) != parts(paper) else "the same"]
    return f"| {' | '.join(map(str, cells))} |"


def tower(architecture: Architecture) -> str:
    layers, width = architecture.vision_layers, architecture.vision_width
    if isinstance(layers, tuple):
        kind = "FastViT" if architecture.family == "mobileclip" else "ModifiedResNet"
        return f"{kind} {'-'.join(map(str, layers))}, width {width}"
    traits = TRAITS[architecture.family]
    told = {
        "three convolutions make the patches": traits.conv_stem,
        "rotary": traits.rotary is not None,
        "gated": traits.gated,
        "learned query": traits.pooling == "map",
        "one register": architecture.registers == 1,
    }
    return ", ".join([f"ViT, {layers} blocks of width {width}", *(what for what, has in told.items() if has)])


def deep(backbone: ClipBackbone) -> str:
    names = parts(backbone)
    what = f"last {len(names)} blocks" if names[0].startswith("block") else ", ".join(names)
    return f"{what}: {millions(backbone.deep)} M"


def parts(backbone: ClipBackbone) -> list[str]:
    return [name for name, _ in backbone.deep.named_children()]


def millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:,.2f}"


if __name__ == "__main__":
    print("\n".join(rows()))
