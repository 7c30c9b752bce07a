"""Calibrated logits from scores: Platt scaling for one channel, late fusion with class-wise weights for several.

    logit_k = Σ_c w_ck s_ck + b_k

Weights are first fitted for all classes together; then each class can deviate from them, under a penalty.
"""

from dataclasses import dataclass

import numpy as np

from intclip.methods.post_heads.solver import Array

_STEPS = 25
_STRENGTH = 5.0
"""Precision of the prior of a class's weights around the shared ones."""
_INTERCEPT = 0.1


@dataclass(frozen=True, eq=False)
class Logits:
    """Fitted weights.

    Attributes:
        weights: (C, K), one per channel and class.
        bias: (K,).
    """

    weights: Array
    bias: Array

    def __call__(self, scores: Array) -> Array:
        """Return logits (N, K) of scores (C, N, K)."""
        return np.asarray(np.einsum("cnk,ck->nk", scores, self.weights) + self.bias, dtype=np.float64)


def fit_logits(scores: Array, targets: Array, *, strength: float = _STRENGTH) -> Logits:
    """Fit weights and biases by penalised logistic regression (Newton's method).

    Args:
        scores: (C, N, K), approximately standardised.
        targets: (N, K), 0 or 1.
        strength: Precision of the prior around the shared weights.

    Source: Platt, Probabilistic outputs for support vector machines, 1999; the shared prior is ours.
    """
    channels, _, classes = scores.shape
    share = (targets.sum(axis=0) + 0.5) / (len(targets) + 1)
    prior_bias = np.log(share / (1 - share))
    shared = np.ones(channels) / channels
    bias = prior_bias.copy()
    for _ in range(_STEPS):  # shared weights, individual biases: alternately
        bias = _newton(scores, targets, np.repeat(shared[:, None], classes, axis=1), bias, None)[1]
        p = _sigmoid(np.einsum("cnk,c->nk", scores, shared) + bias)
        slope = np.einsum("cnk,nk->c", scores, targets - p) - 1e-3 * shared
        curve = np.einsum("cnk,dnk,nk->cd", scores, scores, p * (1 - p)) + 1e-3 * np.eye(channels)
        step = np.linalg.solve(curve, slope)
        shared = np.maximum(shared + step, 0)
        if np.abs(step).max() < 1e-5:
            break
    weights = np.repeat(shared[:, None], classes, axis=1)
    for _ in range(_STEPS):
        weights, bias = _newton(scores, targets, weights, bias, (shared, strength))
    return Logits(np.maximum(weights, 0), bias)


def _newton(
    scores: Array, targets: Array, weights: Array, bias: Array, prior: tuple[Array, float] | None
) -> tuple[Array, Array]:
    """Take one Newton step for all classes; without a prior the weights are fixed."""
    p = _sigmoid(np.einsum("cnk,ck->nk", scores, weights) + bias)
    spread = p * (1 - p)
    if prior is None:
        step = (targets - p).sum(axis=0) - _INTERCEPT * bias
        return weights, bias + step / (spread.sum(axis=0) + _INTERCEPT)
    shared, strength = prior
    channels = len(scores)
    design = np.concatenate([scores, np.ones((1, *scores.shape[1:]))])
    gradient = np.einsum("cnk,nk->kc", design, targets - p)
    gradient[:, :channels] -= strength * (weights.T - shared)
    gradient[:, channels] -= _INTERCEPT * bias
    curve = np.einsum("cnk,dnk,nk->kcd", design, design, spread)
    curve += np.diag([strength] * channels + [_INTERCEPT])
    step = np.linalg.solve(curve, gradient[..., None])[..., 0]
    return weights + step[:, :channels].T, bias + step[:, channels]


def fit_sharpness(logits: Array, targets: Array) -> float:
    """Return the factor of logits, in [e⁻³, e³], whose softmax best fits exclusive targets (N, K)."""
    from scipy.optimize import minimize_scalar

    def loss(log_factor: float) -> float:
        scaled = logits * np.exp(log_factor)
        top = scaled.max(axis=1, keepdims=True)
        normaliser = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
        return float(np.mean(normaliser * targets.sum(axis=1) - (scaled * targets).sum(axis=1)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(x / 2)), dtype=np.float64)


def probabilities(logits: Array, *, exclusive: bool) -> Array:
    """Return the sigmoid of logits (N, K), or for exclusive labels their softmax."""
    if not exclusive:
        return _sigmoid(logits)
    scaled = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True), dtype=np.float64)
