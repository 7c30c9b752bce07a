"""Multi-label and single-label classification losses, computed from logits where that is more accurate.

Multi-label losses take targets (B, K) in [0, 1]: a soft target y (a share of votes) weights the positive loss by y
and the negative loss by 1 − y. A NaN target is an unknown label and contributes nothing to the loss or its gradient.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["sum", "batch", "mean", "none"]
"""sum: over all entries. batch: summed over classes, mean over the batch. mean: over known entries. none: (B, K)."""

_SMALLEST = 1e-8


def asymmetric_loss(
    probabilities: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float = 1,
    gamma_neg: float = 2,
    margin: float = 0.05,
    reduction: Reduction = "sum",
) -> Tensor:
    """Asymmetric loss: −y·(1 − p)^γ₊·log p − (1 − y)·pₘ^γ₋·log(1 − pₘ), pₘ = max(p − margin, 0).

    The focal weights (the powers) have no gradient. Logarithms are clamped at 1e-8, so that p = 0 and p = 1 give
    finite values and gradients; prefer `asymmetric_loss_with_logits`, which needs no clamping.

    Args:
        probabilities: (B, K) in [0, 1].
        targets: (B, K) in [0, 1], hard or soft; NaN where unknown.
        gamma_pos: Focusing parameter γ₊ of positives.
        gamma_neg: Focusing parameter γ₋ of negatives.
        margin: Probability below which a negative has no loss.
        reduction: See `Reduction`.

    Raises:
        ValueError: Shapes do not match, or the reduction is unknown.

    Source: Ridnik et al., Asymmetric Loss, ICCV 2021; IntCLIP paper, Eq. 6, with its missing minus sign.
    """
    p = probabilities.float()
    negative = (1 - p + margin).clamp(max=1)
    return _asymmetric(
        log_positive=p.clamp_min(_SMALLEST).log(),
        log_negative=negative.clamp_min(_SMALLEST).log(),
        positive_weight=_power(1 - p.detach(), gamma_pos),
        negative_weight=_power(1 - negative.detach(), gamma_neg),
        targets=targets,
        reduction=reduction,
    )


def asymmetric_loss_with_logits(
    logits: Tensor,
    targets: Tensor,
    *,
    gamma_pos: float = 1,
    gamma_neg: float = 2,
    margin: float = 0.05,
    reduction: Reduction = "sum",
) -> Tensor:
    """`asymmetric_loss` of sigmoid(logits), exact for logits of any size.

    Args:
        logits: (B, K).
        targets: (B, K) in [0, 1], hard or soft; NaN where unknown.
        gamma_pos: Focusing parameter γ₊ of positives.
        gamma_neg: Focusing parameter γ₋ of negatives.
        margin: Probability below which a negative has no loss.
        reduction: See `Reduction`.

    Raises:
        ValueError: Shapes do not match, or the reduction is unknown.
    """
    z = logits.float()
    complement = torch.sigmoid(-z)
    return _asymmetric(
        log_positive=F.logsigmoid(z),
        log_negative=(complement + margin).clamp(max=1).log() if margin > 0 else F.logsigmoid(-z),
        positive_weight=_power(complement.detach(), gamma_pos),
        negative_weight=_power((torch.sigmoid(z.detach()) - margin).clamp_min(0), gamma_neg),
        targets=targets,
        reduction=reduction,
    )


def binary_cross_entropy(probabilities: Tensor, targets: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Binary cross-entropy of probabilities (B, K): the asymmetric loss with γ₊ = γ₋ = margin = 0."""
    return asymmetric_loss(probabilities, targets, gamma_pos=0, gamma_neg=0, margin=0, reduction=reduction)


def binary_cross_entropy_with_logits(logits: Tensor, targets: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Binary cross-entropy of sigmoid(logits), logits (B, K)."""
    return asymmetric_loss_with_logits(logits, targets, gamma_pos=0, gamma_neg=0, margin=0, reduction=reduction)


def soft_cross_entropy(logits: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of softmax(logits) against the targets divided by their sum, for single-label tasks.

    Rows with NaN or without any label are ignored.

    Args:
        logits: (B, K).
        targets: (B, K) in [0, 1], one-hot or votes.
        reduction: "sum" and "batch" sum over photos or average over all of them; "mean" averages over the photos that
            have a label; "none" gives (B,).
    """
    targets = targets.float()
    total = targets.sum(dim=1, keepdim=True)
    known = total > 0  # false for NaN as well
    share = torch.where(known, targets / total, torch.zeros_like(targets))
    loss = -(share * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    return _reduce(loss, known.sum(), reduction)


def _asymmetric(
    *,
    log_positive: Tensor,
    log_negative: Tensor,
    positive_weight: Tensor,
    negative_weight: Tensor,
    targets: Tensor,
    reduction: Reduction,
) -> Tensor:
    if targets.shape != log_positive.shape:  # broadcasting would silently apply one photo's labels to all
        raise ValueError(f"predictions {tuple(log_positive.shape)} and targets {tuple(targets.shape)} must match")
    known = ~targets.isnan()
    y = torch.where(known, targets.float(), torch.zeros_like(log_positive))
    absent = torch.where(known, 1 - y, y)
    loss = -(y * positive_weight * log_positive + absent * negative_weight * log_negative)
    return _reduce(loss, known.sum(), reduction)


def _power(base: Tensor, gamma: float) -> Tensor:
    """Compute base^γ, with 0⁰ = 1, skipping trivial powers."""
    if gamma == 0:
        return torch.ones_like(base)
    return base if gamma == 1 else base.clamp_min(0) ** gamma


def _reduce(loss: Tensor, known: Tensor, reduction: Reduction) -> Tensor:
    match reduction:
        case "sum":
            return loss.sum()
        case "batch":
            return loss.sum() / max(len(loss), 1)
        case "mean":
            return loss.sum() / known.clamp_min(1)
        case "none":
            return loss
    raise ValueError(f"unknown reduction {reduction!r}; known: sum, batch, mean, none")
