"""LabCR's consistency losses between two views of the same photos, in closed form from logits."""

import torch
import torch.nn.functional as F
from torch import Tensor

_NEVER = -1e9
"""Replaces excluded logits: their softmax is exactly 0, without infinities in the gradient."""


def united_consistency(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean over photos of −Σ p₁ log p₂ − Σ p₂ log p₁, p = sigmoid of the logits (B, K)."""
    one, other = first.float(), second.float()
    crossed = one.sigmoid() * F.logsigmoid(other) + other.sigmoid() * F.logsigmoid(one)
    return -crossed.sum(dim=1).mean()


def divided_consistency(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Return the symmetric cross-entropy of each positive label against the negatives.

    For every positive k of a photo, q is the softmax over {k} and the photo's negatives: −Σ q₁ log q₂ − Σ q₂ log q₁.
    The result is the mean over positives, then over photos; a photo without positives is 0.

    Args:
        first: Logits (B, K) of one view.
        second: Logits (B, K) of the other view.
        targets: (B, K) in [0, 1]; above 0 is positive, NaN is neither positive nor negative.
    """
    positive, negative = targets > 0, targets == 0
    own = torch.eye(targets.shape[1], dtype=torch.bool, device=targets.device)
    among = own | negative[:, None]  # (B, K, K): for row k, itself and the negatives

    def log_shares(logits: Tensor) -> Tensor:
        return logits.float()[:, None].masked_fill(~among, _NEVER).log_softmax(dim=2)

    one, other = log_shares(first), log_shares(second)
    crossed = (one.exp() * other + other.exp() * one).masked_fill(~among, 0)
    rows = -crossed.sum(dim=2) * positive
    return (rows.sum(dim=1) / positive.sum(dim=1).clamp_min(1)).mean()


def relation_consistency(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return the mean over photos of KL(r₁‖r₂) + KL(r₂‖r₁), r a photo's relation to the other photos.

    r is the softmax over the other photos of the batch of cosine / τ.

    Args:
        first: Features (B, d) of one view.
        second: Features (B, d) of the other view.
        temperature: τ.
    """
    photos = first.shape[0]
    if photos < 2:
        return first.sum() * 0

    itself = torch.eye(photos, dtype=torch.bool, device=first.device)

    def log_shares(features: Tensor) -> Tensor:
        unit = F.normalize(features.float(), dim=1)
        # Under autocast the product has half precision, which cannot represent _NEVER.
        return ((unit @ unit.T).float() / temperature).masked_fill(itself, _NEVER).log_softmax(dim=1)

    one, other = log_shares(first), log_shares(second)
    difference = ((one.exp() - other.exp()) * (one - other)).masked_fill(itself, 0)
    return difference.sum(dim=1).mean()
