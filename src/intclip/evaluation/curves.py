"""Data for plots of an evaluation: curves, confusions, best and worst photos."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intclip.metrics import Floats, largest_labels, positives

Bools = npt.NDArray[np.bool_]
GRID = np.linspace(0.01, 0.99, 99)
_TINY = 1e-6


@dataclass(frozen=True)
class Decisions:
    """Scores and decisions of one split.

    Attributes:
        scores: Probabilities (N, K).
        known: (N, K) whether the target is known; all others are ignored.
        positive: (N, K) known and true.
        predicted: (N, K) known and predicted: at or above the threshold, or the most probable one for exclusive labels.
        targets: (N, K) in [0, 1], NaN where unknown.
    """

    scores: Floats
    known: Bools
    positive: Bools
    predicted: Bools
    targets: Floats


def decide(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    thresholds: float | npt.ArrayLike | None,
    *,
    positive_share: float = 0.5,
) -> Decisions:
    """Decide the labels of one split.

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K), 0/1 or soft; NaN where unknown.
        thresholds: One, or K; None for exclusive labels.
        positive_share: Smallest positive soft target; not used for exclusive labels.
    """
    score, target = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    known = ~np.isnan(target)
    if thresholds is None:
        columns = np.arange(score.shape[1])
        label = largest_labels(target)[:, None]
        known = np.broadcast_to(label >= 0, known.shape)
        positive = columns == label
        predicted = known & (columns == score.argmax(axis=1)[:, None])
    else:
        positive = positives(target, positive_share)
        predicted = known & (score >= np.asarray(thresholds, dtype=np.float64))
    return Decisions(score, known, positive, predicted, target)


def threshold_curves(decisions: Decisions, grid: npt.ArrayLike = GRID) -> dict[str, Floats]:
    """Compute macro, micro and samples F1 (T,) of `multilabel_report` for global thresholds.

    Args:
        decisions: On one split.
        grid: Thresholds (T,).

    Returns:
        "threshold", "macro_f1", "micro_f1", "samples_f1".
    """
    levels = np.asarray(grid, dtype=np.float64)
    labelled = decisions.known.any(axis=1)
    rows = []
    for level in levels:
        predicted = decisions.known & (decisions.scores >= level)
        hit = predicted & decisions.positive
        by_class = _f1(hit.sum(axis=0), predicted.sum(axis=0), decisions.positive.sum(axis=0))
        by_photo = _f1(hit.sum(axis=1), predicted.sum(axis=1), decisions.positive.sum(axis=1))
        overall = _f1(hit.sum(), predicted.sum(), decisions.positive.sum())
        rows.append((by_class.mean(), float(overall), by_photo[labelled].mean()))
    macro, micro, samples = np.array(rows).T
    return {"threshold": levels, "macro_f1": macro, "micro_f1": micro, "samples_f1": samples}


def precision_recall(decisions: Decisions, label: int, *, points: int = 60) -> tuple[Floats, Floats]:
    """Compute precision and recall of one label; empty without positives.

    Args:
        decisions: On one split.
        label: Column.
        points: Maximum number, at even steps of recall.
    """
    known = decisions.known[:, label]
    score, positive = decisions.scores[known, label], decisions.positive[known, label]
    if not positive.any():
        return np.empty(0), np.empty(0)
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(positive[order])[ends]
    precision, recall = hits / (ends + 1), hits / positive.sum()
    kept = np.unique(np.searchsorted(recall, np.linspace(recall[0], 1, points) - 1e-12))
    return precision[kept], recall[kept]


def confusion(decisions: Decisions) -> Floats:
    """Return (K, K), row i: of the photos with label i, the share with j wrongly (i on the diagonal) predicted.

    A row is NaN if no photo has the label. For exclusive labels rows sum to 1.
    """
    positive = decisions.positive.astype(np.float64)
    wrong = (decisions.predicted & ~decisions.positive).astype(np.float64)
    counts = positive.T @ wrong
    np.fill_diagonal(counts, (decisions.positive & decisions.predicted).sum(axis=0))
    return _shares(counts, positive.sum(axis=0))


def cooccurrence(labels: Bools) -> Floats:
    """Return (K, K), row i: of the photos with label i, the share that also has j; NaN if no photo has label i."""
    there = labels.astype(np.float64)
    return _shares(there.T @ there, there.sum(axis=0))


def photo_losses(decisions: Decisions, *, exclusive: bool = False) -> Floats:
    """Return the cross-entropy (N,) of each photo: the mean over its known labels, or of the true one if exclusive.

    NaN if nothing is known.
    """
    score = decisions.scores.clip(_TINY, 1 - _TINY)
    target = np.where(decisions.known, np.nan_to_num(decisions.targets), 0)
    if exclusive:
        losses = -np.log(score) * decisions.positive
        count = decisions.known.any(axis=1).astype(np.float64)
    else:
        losses = -(target * np.log(score) + (1 - target) * np.log1p(-score)) * decisions.known
        count = decisions.known.sum(axis=1).astype(np.float64)
    return np.where(count > 0, losses.sum(axis=1) / np.maximum(count, 1), np.nan)


def best_and_worst(
    losses: Floats, decisions: Decisions, count: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the photos (rows) with the lowest and the highest loss, only those with a label."""
    rows = np.flatnonzero(decisions.positive.any(axis=1) & np.isfinite(losses))
    order = rows[np.argsort(losses[rows], kind="stable")]
    return order[:count], order[::-1][:count]


def _f1(hit: npt.ArrayLike, predicted: npt.ArrayLike, positive: npt.ArrayLike) -> Floats:
    both = np.asarray(predicted, dtype=np.float64) + np.asarray(positive, dtype=np.float64)
    return np.asarray(2 * np.asarray(hit, dtype=np.float64) / np.maximum(both, 1))


def _shares(counts: Floats, totals: Floats) -> Floats:
    shares = np.full(counts.shape, np.nan)
    np.divide(counts, totals[:, None], out=shares, where=totals[:, None] > 0)
    return shares
