"""The levels of a taxonomy as tensors: from a level to the next coarser one, and a photo's targets at each."""

from itertools import pairwise

import torch
from torch import Tensor

from intclip.labels.taxonomy import Taxonomy


def level_steps(taxonomy: Taxonomy) -> list[Tensor]:
    """For each level but the finest, which names of the level below lie under its names: (K_h, K_{h+1}), 0 and 1."""
    members = [torch.from_numpy(taxonomy.membership(level)).float() for level in taxonomy.levels]
    return [(fine.T @ coarse > 0).float() for fine, coarse in pairwise(members)]


def coarser_targets(targets: Tensor, step: Tensor) -> Tensor:
    """Targets (B, K_{h+1}) of the next coarser level: as true as the truest name below.

    An unknown name (NaN) makes the one above it unknown, unless another one below is certain, as in `Taxonomy.lift`.

    Args:
        targets: (B, K_h) in [0, 1].
        step: (K_h, K_{h+1}), of `level_steps`.
    """
    unknown = targets.isnan()
    largest = (targets.nan_to_num(0)[:, :, None] * step).amax(dim=1)
    lost = (unknown.float() @ step > 0) & (largest < 1)
    return largest.masked_fill(lost, torch.nan)
