"""Evidence as maps: a method's score of every region, and attention as evidence."""

from collections.abc import Callable

from torch import Tensor


def region_map(score: Callable[[Tensor], Tensor], regions: Tensor) -> Tensor:
    """The score of every region, (B, K, H, W).

    Args:
        score: From vectors (B, N, C) to scores (B, N, K).
        regions: (B, C, H, W).
    """
    scores = score(regions.flatten(2).transpose(1, 2)).transpose(1, 2)
    return scores.reshape(*scores.shape[:2], *regions.shape[2:])  # not len(): a traced graph would keep the example's B


def attention_map(attention: Tensor) -> Tensor:
    """Attention (B, K, H, W), which sums to 1 over regions, as evidence: above 0 where it exceeds an even share."""
    return attention * (attention.shape[2] * attention.shape[3]) - 1
