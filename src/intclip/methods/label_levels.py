"""The levels of a taxonomy as tensors: the map to the next coarser level, and targets at each level."""

from itertools import pairwise

import torch
from torch import Tensor

from intclip.labels.taxonomy import Taxonomy


def level_steps(taxonomy: Taxonomy) -> list[Tensor]:
    """Return, for each level but the finest, its membership matrix with the level below: (K_h, K_{h+1}), 0 and 1."""
    members = [torch.from_numpy(taxonomy.membership(level)).float() for level in taxonomy.levels]
    return [(fine.T @ coarse > 0).float() for fine, coarse in pairwise(members)]


def coarser_targets(targets: Tensor, step: Tensor) -> Tensor:
    """Return targets (B, K_{h+1}) of the next coarser level: the maximum of the names below.

    An unknown name (NaN) makes its parent unknown, unless another child is certain, as in `Taxonomy.lift`.

    Args:
        targets: (B, K_h) in [0, 1].
        step: (K_h, K_{h+1}), from `level_steps`.
    """
    unknown = targets.isnan()
    largest = (targets.nan_to_num(0)[:, :, None] * step).amax(dim=1)
    lost = (unknown.float() @ step > 0) & (largest < 1)
    return largest.masked_fill(lost, torch.nan)
