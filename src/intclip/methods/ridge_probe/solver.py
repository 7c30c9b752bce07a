"""Ridge regression with selection of its strength, and calibration, without a held-out set.

Both use leave-one-out predictions, which a linear smoother gives without refitting (Allen: The relationship between
variable selection and data augmentation and a method for prediction, 1974):

    ŷ₋ᵢ = yᵢ − (yᵢ − ŷᵢ) / (1 − hᵢ),   hᵢ = 1/N + xᵢᵀ (XᵀX + λI)⁻¹ xᵢ
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax
from torch import Tensor

Array = npt.NDArray[np.float64]
_FINITE = 1e-6


@dataclass(frozen=True)
class Ridge:
    """A fitted ridge regression.

    Attributes:
        weight: (P, K), for centred vectors.
        bias: (K,), the mean targets.
        penalty: The selected λ.
        left_out: (N, K), leave-one-out predictions.
    """

    weight: Tensor
    bias: Tensor
    penalty: float
    left_out: Tensor


def fit_ridge(vectors: Tensor, targets: Tensor, penalties: Sequence[float]) -> Ridge:
    """Fit the ridge regression with the smallest leave-one-out mean squared error.

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


@dataclass(frozen=True)
class KernelRidge:
    """A kernel ridge regression.

    Attributes:
        ridge: The regression on Nyström's features.
        weight: (M, K); predictions are kernel · weight + bias, kernel the similarities to the landmarks.
        bias: (K,).
    """

    ridge: Ridge
    weight: Tensor
    bias: Tensor


def fit_nystrom(
    kernel: Tensor, between: Tensor, targets: Tensor, penalties: Sequence[float], *, least: float = 1e-6
) -> KernelRidge:
    """Fit kernel ridge regression with M landmarks; exact if all photos are landmarks.

    Features φ = k(x, L) U Λ^−½ of the landmarks' kernel K_LL = U Λ Uᵀ have φ φᵀ ≈ K (Williams and Seeger: Using the
    Nyström method to speed up kernel machines, 2000); they are centred and passed to `fit_ridge`.

    Args:
        kernel: Similarities (N, M) of the photos to the landmarks.
        between: Similarities (M, M) of the landmarks.
        targets: Y (N, K).
        penalties: The λ to choose from, above 0.
        least: Directions with a smaller share of the largest eigenvalue are left out.
    """
    values, basis = torch.linalg.eigh(between.double())
    kept = values > least * values[-1]
    features = basis[:, kept] / values[kept].sqrt()
    mapped = kernel.double() @ features
    mean = mapped.mean(dim=0)
    ridge = fit_ridge(mapped - mean, targets, penalties)
    return KernelRidge(ridge, features @ ridge.weight, ridge.bias - mean @ ridge.weight)


def fit_logits(scores: Tensor, targets: Tensor, *, exclusive: bool) -> tuple[Tensor, Tensor]:
    """Fit slope and offset (K,) that convert scores to logits (Platt: Probabilities for SV machines, 1999).

    Args:
        scores: (N, K), preferably leave-one-out predictions.
        targets: (N, K) in [0, 1].
        exclusive: One label per photo, with a softmax of the logits.
    """
    s, y = scores.double().numpy(force=True), targets.double().numpy(force=True)
    if exclusive:
        y = y / np.maximum(y.sum(axis=1, keepdims=True), 1e-6)
    mean, spread = s.mean(axis=0), np.maximum(s.std(axis=0), 1e-6)
    units, labels = (s - mean) / spread, s.shape[1]
    normaliser = len(s) if exclusive else s.size

    def loss(line: Array) -> tuple[float, Array]:
        slope, offset = line[:labels], line[labels:]
        logits = units * slope + offset
        if exclusive:
            predicted, cost = softmax(logits, axis=1), -(y * log_softmax(logits, axis=1)).sum()
        else:
            predicted, cost = expit(logits), (np.logaddexp(0, logits) - y * logits).sum()
        error = predicted - y
        gradient = np.concatenate([(error * units).sum(axis=0), error.sum(axis=0)]) / normaliser
        # A label with photos on only one side has no optimum; this keeps its slope finite.
        return float(cost / normaliser + _FINITE * line @ line / labels), gradient + 2 * _FINITE * line / labels

    start = np.concatenate([np.ones(labels), logit(np.clip(y.mean(axis=0), 1e-4, 1 - 1e-4))])
    line = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12, "gtol": 1e-8}).x
    slope = line[:labels] / spread
    return torch.from_numpy(slope), torch.from_numpy(line[labels:] - slope * mean)
