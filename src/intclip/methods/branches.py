"""Trainable copies of a backbone's layers."""

import copy

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Branch(nn.Module):
    """A trainable copy of some layers, initialised with their weights.

    Running statistics of normalisation layers stay fixed, also in training; affine parameters train.

    Args:
        *parts: Layers in order; they are copied, and the originals stay frozen.
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(copy.deepcopy(part) for part in parts)).requires_grad_(True)
        self.train(self.training)

    def forward(self, features: Tensor) -> Tensor:
        """Apply the copied layers."""
        out: Tensor = self.layers(features)
        return out

    def train(self, mode: bool = True) -> "Branch":
        """Switch to training or evaluation mode, with fixed running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self
