"""Ridge regression that chooses its strength, and turns its answers into probabilities, without a photo set aside.

Both use what each photo would be told had it been left out, which a linear smoother knows without being fitted again
(Allen: The relationship between variable selection and data augmentation and a method for prediction, 1974):

    ŷ₋ᵢ = yᵢ − (yᵢ − ŷᵢ) / (1 − hᵢ),   hᵢ = 1/N + xᵢᵀ (XᵀX + λI)⁻¹ xᵢ
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        weight: (P, K), of centred vectors.
        bias: (K,), the mean targets.
        penalty: The λ that was chosen.
        left_out: (N, K): what each row would be told had it been left out.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    left_out: Tensor


def fit_ridge(vectors: Tensor, targets: Tensor, penalties: Sequence[float]) -> Ridge:
    """The ridge regression whose left-out answers have the least mean square error.

    Args:
        vectors: X (N, P), each column with mean 0.
        targets: Y (N, K).
        penalties: The λ to choose from, above 0.
    """
    x = vectors.double()
    bias = targets.double().mean(dim=0)
    y = targets.double() - bias
    values, basis = torch.linalg.eigh(x.T @ x)
    rotated, coordinates = x @ basis, basis.T @ (x.T @ y)
    best: Ridge | None = None
    least = float("inf")
    for penalty in penalties:
        shrink = 1 / (values.clamp_min(0) + penalty)
        residual = y - rotated @ (shrink[:, None] * coordinates)
        leverage = (rotated.square() @ shrink + 1 / len(x)).clamp_max(1 - 1e-9)
        missed = residual / (1 - leverage[:, None])
        error = float(missed.square().mean())
        if best is None or error < least:
            weight = basis @ (shrink[:, None] * coordinates)
            best, least = Ridge(weight, bias, penalty, targets.double() - missed), error
    if best is None:
        raise ValueError("no penalties to choose from")
    return best


def fit_logits(scores: Tensor, targets: Tensor, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Slope and offset (K,) a label that make logits of scores (Platt: Probabilities for SV machines, 1999).

    Args:
        scores: (N, K), best of photos that were left out of the fit.
        targets: (N, K) in [0, 1].
        exclusive: One label a photo: the logits then go through a softmax.
    """
    scores, targets = scores.detach().double(), targets.detach().double()
    spread = scores.std(dim=0).clamp_min(1e-6)
    mean = scores.mean(dim=0)
    units = (scores - mean) / spread
    slope, offset = torch.ones_like(mean).requires_grad_(), torch.logit(targets.mean(dim=0), eps=1e-4).requires_grad_()
    optimizer = torch.optim.LBFGS([slope, offset], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = units * slope + offset
        if exclusive:
            loss = F.cross_entropy(logits, targets / targets.sum(dim=1, keepdim=True).clamp_min(1e-6))
        else:
            loss = F.binary_cross_entropy_with_logits(logits, targets)
        # A label without photos on one side has no optimum; this keeps its line finite.
        loss = loss + 1e-6 * (slope.square().mean() + offset.square().mean())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    slope, offset = slope.detach(), offset.detach()
    return slope / spread, offset - slope * mean / spread
