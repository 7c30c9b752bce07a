"""Image towers in parallel, with concatenated channels."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class SideBySide(nn.Module):
    """Runs towers, or the same part of each, in parallel and concatenates their output channels.

    Args:
        towers: Each maps (B, C_i, H, W) to (B, C'_i, H', W').
        inputs: Channels C_i of each tower's part of the input; default: each gets the whole input.
    """

    def __init__(self, towers: Iterable[nn.Module], inputs: Sequence[int] | None = None) -> None:
        super().__init__()
        self.towers = nn.ModuleList(towers)
        self.inputs = None if inputs is None else list(inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, ΣC_i, H, W), or a common (B, C, H, W), to (B, ΣC'_i, H', W')."""
        parts = [x] * len(self.towers) if self.inputs is None else torch.split(x, self.inputs, dim=1)
        return torch.cat([tower(part) for tower, part in zip(self.towers, parts, strict=True)], dim=1)


class OwnChannels(nn.Module):
    """Applies one tower's layers to its own channels of several towers' features.

    Args:
        layers: The tower's layers.
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
