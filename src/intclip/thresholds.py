"""Decision thresholds, tuned on a validation split, never on the reported split."""

from typing import Literal, get_args, overload

import numpy as np
import numpy.typing as npt

from intclip.metrics import Floats, positives

GRID: tuple[float, ...] = tuple(step / 20 for step in range(1, 20))
"""0.05, 0.10, … 0.95, the grid of the Intentonomy protocol."""
SHRINKAGE = 10.0
"""Pseudo-positives for the global threshold with which `fit` and `calibrate` shrink those of single classes."""
Objective = Literal["macro_f1", "micro_f1", "samples_f1", "mean_f1"]
"""mean_f1: the mean of the three others, as in the paper."""
Ties = Literal["middle", "first"]
"""Choice between equally good thresholds; see `tune_threshold`."""


@overload
def tune_threshold(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    grid: npt.ArrayLike = ...,
    objective: Objective = ...,
    per_class: Literal[False] = ...,
    shrinkage: float = ...,
    ties: Ties = ...,
    positive_share: float = ...,
) -> float: ...
@overload
def tune_threshold(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    grid: npt.ArrayLike = ...,
    objective: Objective = ...,
    per_class: Literal[True],
    shrinkage: float = ...,
    ties: Ties = ...,
    positive_share: float = ...,
) -> Floats: ...
@overload
def tune_threshold(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    grid: npt.ArrayLike = ...,
    objective: Objective = ...,
    per_class: bool,
    shrinkage: float = ...,
    ties: Ties = ...,
    positive_share: float = ...,
) -> float | Floats: ...
def tune_threshold(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    grid: npt.ArrayLike = GRID,
    objective: Objective = "macro_f1",
    per_class: bool = False,
    shrinkage: float = 0.0,
    ties: Ties = "middle",
    positive_share: float = 0.5,
) -> float | Floats:
    """Choose the threshold of a grid that maximises an F1 score; a label is predicted at or above it.

    Published Intentonomy numbers use one global threshold, chosen on val by macro F1 and applied to test;
    that code takes the first of equally good thresholds and predicts strictly above it (`ties="first"` is equivalent
    unless a score is exactly on the grid).

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K), 0/1 or soft; NaN where unknown.
        grid: Candidate thresholds.
        objective: Objective of the global threshold.
        per_class: One threshold per class, maximising that class's F1, which also maximises macro F1.
        shrinkage: With `per_class`, number s of pseudo-positives for the global threshold g: a class with n positives
            gets (n·t + s·g) / (n + s). A class without positives always gets g. Finite and not negative.
        ties: Choice between equally good thresholds: "middle" is the one nearest to 0.5 (per class: nearest to the
            global one), "first" the lowest.
        positive_share: A soft target counts as positive at or above it.

    Returns:
        One threshold, or with `per_class` an array (K,).

    Raises:
        ValueError: Shapes do not match, there are no photos, a score is NaN, the grid is empty or has a NaN,
            `shrinkage` is out of range, `objective` or `ties` is unknown, or `per_class` is used
            with another objective than macro F1.
    """
    score = np.asarray(scores, dtype=np.float64)
    target = np.asarray(targets, dtype=np.float64)
    candidates = np.unique(np.asarray(grid, dtype=np.float64))
    if score.ndim != 2 or score.shape != target.shape or not len(score):
        raise ValueError(f"scores {score.shape} and targets {target.shape} must be (N, K), N at least 1")
    if np.isnan(score).any():
        raise ValueError("a score is NaN")
    if not candidates.size or np.isnan(candidates).any():
        raise ValueError("the grid must have a threshold, and no NaN")
    if objective not in get_args(Objective):
        raise ValueError(f"unknown objective {objective!r}; known: {', '.join(get_args(Objective))}")
    if ties not in get_args(Ties):
        raise ValueError(f"unknown ties {ties!r}; known: {', '.join(get_args(Ties))}")
    if per_class and objective != "macro_f1":
        raise ValueError(f"thresholds per class maximise macro_f1, not {objective}")
    if not 0 <= shrinkage < np.inf:
        raise ValueError(f"shrinkage {shrinkage} must be at least 0")
    known = ~np.isnan(target)
    positive = positives(target, positive_share)
    curves = [_f1_scores(known & (score >= t), positive, known) for t in candidates]
    value = np.array([_objective(curve, objective) for curve in curves])
    overall = float(candidates[_best(value, candidates, 0.5, ties)])
    if not per_class:
        return overall
    by_class = np.stack([f1 for f1, _, _ in curves], axis=1)
    tuned = np.array([candidates[_best(curve, candidates, overall, ties)] for curve in by_class])
    count = positive.sum(axis=0)
    shrunk = (count * tuned + shrinkage * overall) / np.maximum(count + shrinkage, 1)
    return np.where(count > 0, shrunk, overall)


def _f1_scores(
    predicted: npt.NDArray[np.bool_], positive: npt.NDArray[np.bool_], known: npt.NDArray[np.bool_]
) -> tuple[Floats, float, float]:
    """Return F1 of every class (K,), micro F1, and samples F1."""
    hit = predicted & positive

    def f1(axis: int | None) -> Floats:
        both = np.asarray(predicted.sum(axis=axis) + positive.sum(axis=axis), dtype=np.float64)
        return np.asarray(2 * hit.sum(axis=axis) / np.maximum(both, 1), dtype=np.float64)

    labelled = known.any(axis=1)
    return f1(0), float(f1(None)), float(f1(1)[labelled].mean()) if labelled.any() else 0.0


def _objective(curve: tuple[Floats, float, float], objective: Objective) -> float:
    f1, micro, samples = curve
    macro = float(f1.mean())
    return {"macro_f1": macro, "micro_f1": micro, "samples_f1": samples, "mean_f1": (macro + micro + samples) / 3}[
        objective
    ]


def _best(values: Floats, candidates: Floats, middle: float, ties: Ties) -> int:
    """Return the index of the largest value; ties (within 1e-12) by `ties`, the lower of two equally near ones."""
    equal = np.flatnonzero(values >= values.max() - 1e-12)
    if ties == "first":
        return int(equal[0])
    return int(equal[np.abs(candidates[equal] - middle).argmin()])
