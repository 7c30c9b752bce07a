"""Image towers side by side: what they give stands one after the other in the channels."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class SideBySide(nn.Module):
    """Towers, or the same part of them, beside each other; what they give stands one after the other in the channels.

    Args:
        towers: Each maps (B, C_i, H, W) to (B, C'_i, H', W').
        inputs: Channels C_i of each one's own part of the input; without them all read the whole input.
    """

    def __init__(self, towers: Iterable[nn.Module], inputs: Sequence[int] | None = None) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.inputs = None if inputs is None else list(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, ΣC_i, H, W), or (B, C, H, W) that all read, to (B, ΣC'_i, H', W')."""
        parts = [x] * len(self.towers) if self.inputs is None else torch.split(x, self.inputs, dim=1)
        return torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)


class OwnChannels(nn.Module):
    """Layers of one tower over features of several: they read their own channels alone.

    Args:
        layers: The tower's.
        first: Its first channel.
        count: Number of its channels.
    """

    def __init__(self, layers: nn.Module, first: int, count: int) -> None:
        super().__init__()
        self.layers = layers
        self.first, self.count = first, count

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, ΣC_i, H, W) to (B, C'_i, H', W')."""
        out: Tensor = self.layers(x[:, self.first : self.first + self.count])
        return out
