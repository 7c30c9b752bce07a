"""Inputs of the probes: one scaled vector per photo from frozen features."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import FeatureName, Features

Vector = Literal["pooled", "region_mean", "pooled_and_region_mean"]
"""pooled: the backbone's own image embedding. region_mean: the mean of the region features. Both concatenated: [class
token,
patch mean] of a ViT, in the joint space."""
Scaling = Literal["none", "l2", "standardize"]

_NEEDS: dict[Vector, tuple[FeatureName, ...]] = {
    "pooled": ("pooled",),
    "region_mean": ("regions",),
    "pooled_and_region_mean": ("pooled", "regions"),
}


def vector_needs(kind: Vector) -> tuple[FeatureName, ...]:
    """Return the backbone features that a kind of vector needs."""
    return _NEEDS[kind]


class ProbeInput(nn.Module):
    """Scaled vectors (B, W) of frozen features.

    Args:
        embed_dim: Size D of the joint space.
        kind: Kind of vector.
        scaling: "l2" divides each part by its norm; "standardize" scales every coordinate to mean 0 and variance 1 over
            the training set (after `fit`); "none" does not scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embed_dim: int, kind: Vector, scaling: Scaling) -> None:
        super().__init__()
        self.kind, self.scaling = kind, scaling
        self.width = embed_dim * len(_NEEDS[kind])
        if scaling == "standardize":
            self.register_buffer("mean", torch.zeros(self.width))
            self.register_buffer("std", torch.ones(self.width))

    def forward(self, features: Features) -> Tensor:
        """Return vectors (B, W)."""
        vectors = self._vectors(features)
        return (vectors - self.mean) / self.std if self.scaling == "standardize" else vectors

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute mean and deviation of the training set in one pass, if the scaling needs them."""
        if self.scaling != "standardize":
            return
        count, mean, spread = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for features, _ in batches:
            vectors = self._vectors(features).double()
            batch_mean, added = vectors.mean(dim=0), len(vectors)
            shift = batch_mean - mean
            spread += ((vectors - batch_mean) ** 2).sum(dim=0) + shift**2 * (count * added / (count + added))
            mean += shift * (added / (count + added))
            count += added
        if count:
            self.mean.copy_(mean)
            self.std.copy_((spread / count).sqrt().clamp_min(1e-6))

    def _vectors(self, features: Features) -> Tensor:
        parts = [features[name] if name == "pooled" else features[name].mean(dim=(2, 3)) for name in _NEEDS[self.kind]]
        if self.scaling == "l2":
            parts = [F.normalize(part, dim=1) for part in parts]
        return torch.cat(parts, dim=1)
