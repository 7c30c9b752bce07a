"""CLIP as one backbone: an image tower of either kind, a text transformer, and one joint space."""

import math
from collections import Counter

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture, Split
from intclip.backbones.base import Backbone
from intclip.backbones.clip_resnet import STAGES, build_resnet
from intclip.backbones.clip_text import ClipText
from intclip.backbones.clip_vit import as_map, build_vit
from intclip.backbones.preprocess import Preprocess

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipBackbone(Backbone):
    """CLIP (Radford et al., 2021), split as IntCLIP needs it.

    | image tower | split      | trunk                     | deep                  |
    |-------------|------------|---------------------------|-----------------------|
    | ResNet      | "paper"    | stem, layer1–3            | layer4                |
    | ResNet      | "released" | stem, layer1–2            | layer3–4              |
    | ViT         | either     | embedding and 3/4 of them | last quarter of blocks |

    The released code of IntCLIP has no ViT, so both splits mean the paper's there.

    Args:
        architecture: Sizes; the weights are yet to be loaded.
        split: See the table.
        name: Registry name; a description of the architecture without one.

    Attributes:
        architecture: Sizes.
        split: Where the trunk ends.
        logit_scale: CLIP's own learned scale of cosines, as its logarithm; scalar.
    """

    trunk: nn.Sequential
    deep: nn.Sequential

    def __init__(self, architecture: Architecture, split: Split = "paper", name: str | None = None) -> None:
        super().__init__()
        self.name = name or architecture.label
        self.architecture = architecture
        self.split: Split = split
        self.embed_dim = architecture.embed_dim
        self.grid = (architecture.grid, architecture.grid)
        self.preprocess = Preprocess(size=architecture.image_size, mean=MEAN, std=STD)
        if architecture.patch_size is None:
            self.trunk, self.deep, self.head = build_resnet(architecture, split)
        else:
            self.trunk, self.deep, self.head = build_vit(architecture)
        self.text = ClipText(architecture)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Four maps (B, C_i, H_i, W_i): a ResNet's stages, or a ViT's patch tokens after each quarter of its blocks."""
        return self.run_stages(pixels)[2]

    def run_stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Trunk features, last feature map and the four stage maps of pixels (B, 3, S, S), in one pass."""
        ends = self._stage_ends()
        stages: list[Tensor] = []
        x = pixels
        for name, part in self.trunk.named_children():
            x = part(x)
            stages += [self.deep_map(x)] * ends[name]
        trunk = x
        for name, part in self.deep.named_children():
            x = part(x)
            stages += [self.deep_map(x)] * ends[name]
        return trunk, x, stages

    def _stage_ends(self) -> Counter[str]:
        """How many stages end behind each part; a ViT of fewer than four blocks ends several behind one."""
        layers = self.architecture.vision_layers
        if isinstance(layers, tuple):
            return Counter(STAGES)
        return Counter(f"block{math.ceil(layers * quarter / 4) - 1}" for quarter in (1, 2, 3, 4))

    def deep_map(self, deep: Tensor) -> Tensor:
        """The last feature map (B, C, H, W) of a ResNet, or the patch tokens of a ViT as one."""
        return deep if self.architecture.patch_size is None else as_map(deep[:, 1:])


def random_clip(
    architecture: Architecture, *, seed: int = 0, split: Split = "paper", name: str | None = None
) -> ClipBackbone:
    """A CLIP with seeded random weights that keep activations of ordinary size, for tests and speed measurements.

    Args:
        architecture: Any sizes.
        seed: Same seed, same weights.
        split: See `ClipBackbone`.
        name: See `ClipBackbone`.
    """
    with torch.device("meta"):
        backbone = ClipBackbone(architecture, split, name)
    backbone.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, math.prod(parameter.shape[1:]) ** -0.5, generator=generator)
            else:
                parameter.normal_(0, 0.02, generator=generator)
        for module in backbone.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.weight.add_(1)
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
        backbone.logit_scale.fill_(math.log(100))
    backbone.freeze()
    return backbone
