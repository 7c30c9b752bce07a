"""Evidence maps from a method's scores of regions, or from attention."""

from collections.abc import Callable

from torch import Tensor


def region_map(score: Callable[[Tensor], Tensor], regions: Tensor) -> Tensor:
    """Return the score of every region, (B, K, H, W).

    Args:
        score: Maps vectors (B, N, C) to scores (B, N, K).
        regions: (B, C, H, W).
    """
    scores = score(regions.flatten(2).transpose(1, 2)).transpose(1, 2)
    return scores.reshape(*scores.shape[:2], *regions.shape[2:])  # not len(): a traced graph would fix the example's B


def attention_map(attention: Tensor) -> Tensor:
    """Convert attention (B, K, H, W), with sum 1 over regions, to evidence: positive where above uniform."""
    return attention * (attention.shape[2] * attention.shape[3]) - 1
