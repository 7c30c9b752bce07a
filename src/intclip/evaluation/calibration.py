"""Calibration: temperature scaling, isotonic regression, calibration error, reliability curves.

Everything is fitted on a validation split. Targets may be soft (a share of votes): a calibrated 0.6 then means 0.6 of
the votes. NaN targets are ignored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax
from sklearn.isotonic import IsotonicRegression

from intclip.metrics import Floats

_LOG_TEMPERATURE_BOUND = 5.0


def fit_temperature(logits: npt.ArrayLike, targets: npt.ArrayLike, *, exclusive: bool = False) -> float:
    """Fit the temperature T in [e⁻⁵, e⁵] that minimises the cross-entropy of the probabilities of logits / T.

    Args:
        logits: (N, K).
        targets: (N, K) in [0, 1]; NaN where unknown.
        exclusive: Whether labels are exclusive: softmax instead of sigmoid; photos with unknown targets are ignored.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; with a sigmoid per label in multi-label
    tasks.
    """
    if exclusive:
        z, y = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.float64)
        z, y = z[~np.isnan(y).any(axis=1)], y[~np.isnan(y).any(axis=1)]
        if not len(y):
            raise ValueError("no known target to calibrate on")
    else:
        z, y = _pairs(logits, targets)

    def loss(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        if exclusive:
            return float(np.mean((y * (logsumexp(scaled, axis=1, keepdims=True) - scaled)).sum(axis=1)))
        return float(np.mean(np.logaddexp(0, scaled) - y * scaled))

    found = minimize_scalar(loss, bounds=(-_LOG_TEMPERATURE_BOUND, _LOG_TEMPERATURE_BOUND), method="bounded")
    return float(np.exp(found.x))


def apply_temperature(scores: npt.ArrayLike, temperature: float, *, exclusive: bool = False) -> Floats:
    """Apply a temperature to probabilities: sigmoid(logit(scores) / T), or softmax for exclusive labels.

    Args:
        scores: Probabilities of any shape; with `exclusive` the last axis sums to 1.
        temperature: T > 0.
        exclusive: See `fit_temperature`.
    """
    if exclusive:
        powers = np.log(np.clip(np.asarray(scores, dtype=np.float64), 1e-38, 1)) / temperature
        return np.asarray(softmax(powers, axis=-1), dtype=np.float64)
    p = np.clip(np.asarray(scores, dtype=np.float64), 1e-12, 1 - 1e-12)
    scaled = (np.log(p) - np.log1p(-p)) / temperature
    return np.asarray(0.5 * (1 + np.tanh(scaled / 2)), dtype=np.float64)


@dataclass(frozen=True)
class IsotonicMap:
    """Non-decreasing, piecewise linear maps from scores to probabilities; plain numbers that can be stored as JSON.

    Attributes:
        knots: One pair (scores, probabilities) for all classes, or one per class.
    """

    knots: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...]

    def __call__(self, scores: npt.ArrayLike) -> Floats:
        """Calibrate scores (N, K).

        Raises:
            ValueError: The map was fitted per class, for another number of classes.
        """
        score = np.asarray(scores, dtype=np.float64)
        if len(self.knots) == 1:
            return np.interp(score, *self.knots[0])
        if score.ndim != 2 or score.shape[1] != len(self.knots):
            raise ValueError(f"scores {score.shape} do not fit a map of {len(self.knots)} classes")
        return np.stack([np.interp(column, *knots) for column, knots in zip(score.T, self.knots, strict=True)], axis=1)


def fit_isotonic(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, per_class: bool = False, min_positives: int = 20
) -> IsotonicMap:
    """Isotonic regression of targets on scores.

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K) in [0, 1]; NaN where unknown.
        per_class: One map per class; a class with fewer than `min_positives` (summed targets) uses the common map.
        min_positives: See `per_class`; an isotonic map of few positives overfits.
    """
    score, target = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    overall = _isotonic(*_pairs(score, target))
    if not per_class:
        return IsotonicMap((overall,))
    enough = np.nansum(target, axis=0) >= min_positives
    return IsotonicMap(
        tuple(_isotonic(*_pairs(score[:, k], target[:, k])) if enough[k] else overall for k in range(score.shape[1]))
    )


@dataclass(frozen=True)
class ReliabilityCurve:
    """Predicted and observed frequency by bins of the score, without empty bins.

    Attributes:
        score: Mean score of each bin.
        frequency: Mean target of each bin.
        count: Number of entries of each bin.
    """

    score: Floats
    frequency: Floats
    count: npt.NDArray[np.int64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean absolute difference of score and frequency, weighted by count."""
        return float(np.abs(self.score - self.frequency) @ self.count / self.count.sum())


def reliability_curve(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, bins: int | Sequence[float] = 15, equal_count: bool = False
) -> ReliabilityCurve:
    """Compute a reliability curve over all entries of (N, K) or one column.

    Args:
        scores: In [0, 1], of any shape.
        targets: In [0, 1], of the same shape; NaN where unknown.
        bins: Number of bins over [0, 1], or their edges.
        equal_count: Equal-mass instead of equal-width bins, because scores of rare labels concentrate near 0.
    """
    score, target = _pairs(scores, targets)
    if isinstance(bins, int):
        share = np.linspace(0, 1, bins + 1)
        edges = np.quantile(score, share) if equal_count else share
    else:
        edges = np.asarray(bins, dtype=np.float64)
    index = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, len(edges) - 2)
    count = np.bincount(index, minlength=len(edges) - 1)
    filled = count > 0
    total_score = np.bincount(index, weights=score, minlength=len(edges) - 1)[filled]
    total_target = np.bincount(index, weights=target, minlength=len(edges) - 1)[filled]
    return ReliabilityCurve(total_score / count[filled], total_target / count[filled], count[filled].astype(np.int64))


def expected_calibration_error(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, bins: int = 15, equal_count: bool = False
) -> float:
    """Compute the expected calibration error; see `reliability_curve`."""
    return reliability_curve(scores, targets, bins=bins, equal_count=equal_count).error


def _pairs(values: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Floats, Floats]:
    value, target = np.asarray(values, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if value.shape != target.shape:
        raise ValueError(f"{value.shape} and targets {target.shape} must have the same shape")
    known = ~np.isnan(target)
    if not known.any():
        raise ValueError("no known target to calibrate on")
    return value[known], target[known]


def _isotonic(score: Floats, target: Floats) -> tuple[tuple[float, ...], tuple[float, ...]]:
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score, target)
    return tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_))
