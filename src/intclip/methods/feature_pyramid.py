"""A feature pyramid (Lin et al., CVPR 2017): maps of several stages at one width, coarse added to fine."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class FeaturePyramid(nn.Module):
    """Lateral 1×1 convolutions, a sum from coarse to fine, and a 3×3 convolution per level.

    Args:
        channels: Channels of the stages' maps, fine to coarse.
        dim: Common width d.
    """

    def __init__(self, channels: Sequence[int], dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, dim, 1) for count in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in channels)

    def forward(self, maps: Mapping[int, Tensor]) -> list[Tensor]:
        """Return levels (B, d, H_i, W_i), fine to coarse, of the stages' maps (B, C_i, H_i, W_i)."""
        levels = [layer(stage) for layer, stage in zip(self.lateral, maps.values(), strict=True)]
        for fine in reversed(range(len(levels) - 1)):
            coarse, size = levels[fine + 1], levels[fine].shape[2:]
            if coarse.shape[2:] != size:
                coarse = F.interpolate(coarse, size=(int(size[0]), int(size[1])), mode="nearest")
            levels[fine] = levels[fine] + coarse
        return [layer(level) for layer, level in zip(self.smooth, levels, strict=True)]
