"""Multi-label and single-label classification metrics, in NumPy, all as fractions in 0…1.

Percentages appear only in printed tables. Everything is computed from one weight per photo, so that a
report (all weights one) and its bootstrap intervals (random weights) share the same code. Conventions are
scikit-learn's: a precision, recall or F1 without support is 0. A class without positives or without negatives has no
average precision (NaN) and is left out of the mean.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ENTRIES = 2**22
"""Bootstrap weights per block, 32 MB."""

SUMMARY = (
    "macro_f1",
    "micro_f1",
    "samples_f1",
    "CF1",
    "OF1",
    "macro_precision",
    "macro_recall",
    "micro_precision",
    "micro_recall",
    "mAP",
    "mAP_voc",
)
"""Keys of the scalars in a multi-label report.

macro_f1: mean of the classes' F1. micro_f1: F1 of all decisions together. samples_f1: mean of the photos' F1.
CF1: harmonic mean of macro precision and macro recall. OF1: harmonic mean of micro precision and recall (= micro_f1).
mAP: mean of the exact, non-interpolated average precisions (scikit-learn; IntCLIP's and DualCoOp's code).
mAP_voc: the same with each precision replaced by the largest at that recall or beyond, integrated over all recalls
(Pascal VOC 2010 and later; Query2Label, HLEG, LabCR and PsyIntent report this one). It is never below mAP.
"""


def multilabel_report(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    thresholds: float | npt.ArrayLike = 0.5,
    subsets: Mapping[str, Sequence[int]] | None = None,
    positive_share: float = 0.5,
) -> dict[str, Any]:
    """All multi-label metrics of one split.

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K), 0/1 or soft; NaN where unknown, which are ignored.
        thresholds: A label is predicted if its score is at or above this; one number, one per class (K,), or one per
            entry (N, K), whose class means are reported.
        subsets: Subset name to class indices, such as {"easy": [0, 7, 19], "hard": [2, 5]}.
        positive_share: A soft target counts as positive at or above it.

    Returns:
        The scalars of `SUMMARY`; "images" and "labels_per_image" (positives); "per_class", a dict of arrays (K,): "f1",
        "precision", "recall", "AP", "AP_voc", "support", "predicted", "threshold"; and with `subsets` "subsets": name
        to {"macro_f1", "mAP", "mAP_voc"}, means over its classes.

    Raises:
        ValueError: Shapes do not match, or a score or a threshold is NaN.
    """
    problem = _Problem(scores, targets, thresholds, positive_share)
    classes = problem.per_class(np.ones((1, problem.images)))
    table: dict[str, npt.NDArray[Any]] = {key: value[0] for key, value in classes.items()}
    summary = {key: float(value[0]) for key, value in problem.summary(np.ones((1, problem.images))).items()}
    table["support"] = problem.positive.sum(axis=0).astype(np.int64)
    table["predicted"] = problem.predicted.sum(axis=0).astype(np.int64)
    table["threshold"] = problem.thresholds
    report: dict[str, Any] = {
        **summary,
        "images": problem.images,
        "labels_per_image": float(problem.positive.sum() / problem.images),
        "per_class": table,
    }
    if subsets is not None:
        report["subsets"] = {
            name: {
                "macro_f1": float(table["f1"][list(members)].mean()),
                "mAP": float(_nanmean(table["AP"][None, list(members)])[0]),
                "mAP_voc": float(_nanmean(table["AP_voc"][None, list(members)])[0]),
            }
            for name, members in subsets.items()
        }
    return report


def bootstrap_intervals(
    scores: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    thresholds: float | npt.ArrayLike = 0.5,
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    positive_share: float = 0.5,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of the scalars of `multilabel_report`, photos drawn with replacement.

    Args:
        scores: (N, K).
        targets: (N, K); NaN where unknown.
        thresholds: As for `multilabel_report`; fixed, not tuned again on each draw.
        n: Number of draws.
        seed: Seed of the draws.
        level: Coverage, in (0, 1).
        positive_share: A soft target counts as positive at or above it.

    Returns:
        Key of `SUMMARY` to (low, high).
    """
    problem = _Problem(scores, targets, thresholds, positive_share)
    tails = [(1 - level) / 2, (1 + level) / 2]
    out: dict[str, tuple[float, float]] = {}
    for key, values in _over_draws(problem.summary, problem.images, n, seed).items():
        low, high = _quantiles(values, tails)
        out[key] = (low, high)
    return out


def bootstrap_differences(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    targets: npt.ArrayLike,
    *,
    thresholds: tuple[float | npt.ArrayLike, float | npt.ArrayLike] = (0.5, 0.5),
    n: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    positive_share: float = 0.5,
) -> dict[str, tuple[float, float, float]]:
    """Compare two models on the same photos, with percentile bootstrap intervals of the differences.

    Each draw uses the same photos for both, so that common difficulty cancels.

    Args:
        first: Scores (N, K) of one model.
        second: Scores (N, K) of the other.
        targets: (N, K); NaN where unknown.
        thresholds: Thresholds of the two, each as for `multilabel_report`.
        n: Number of draws.
        seed: Seed of the draws.
        level: Coverage, in (0, 1).
        positive_share: A soft target counts as positive at or above it.

    Returns:
        Key of `SUMMARY` to (difference, low, high).
    """
    problems = [
        _Problem(scores, targets, t, positive_share) for scores, t in zip((first, second), thresholds, strict=True)
    ]
    images = problems[0].images
    ours, theirs = (problem.summary(np.ones((1, images))) for problem in problems)
    ours_drawn, theirs_drawn = (_over_draws(problem.summary, images, n, seed) for problem in problems)
    tails = [(1 - level) / 2, (1 + level) / 2]
    out: dict[str, tuple[float, float, float]] = {}
    for key in SUMMARY:
        low, high = _quantiles(ours_drawn[key] - theirs_drawn[key], tails)
        out[key] = (float(ours[key][0] - theirs[key][0]), low, high)
    return out


def _quantiles(values: Floats, tails: list[float]) -> tuple[float, float]:
    """Return the two quantiles of finite draws; NaN if there are none, such as mAP without positives."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, tails)
    return float(low), float(high)


def singlelabel_report(scores: npt.ArrayLike, targets: npt.ArrayLike) -> dict[str, Any]:
    """Compute single-label metrics; the predicted class is the one with the highest score.

    Args:
        scores: (N, K).
        targets: (N,) class indices, or (N, K) whose largest entry is the class; a negative index, or a row with a NaN
            or without an entry above 0, is an unlabelled photo and is ignored.

    Returns:
        "accuracy"; "macro_f1" (over classes that occur, as label or prediction); "balanced_accuracy" (mean recall over
        classes that occur as label); "images"; "confusion" (K, K) counts, rows the label, columns the prediction;
        "per_class": arrays (K,) "f1", "precision", "recall", "support", "predicted".
    """
    score, label = _single(scores, targets)
    classes = score.shape[1]
    predicted = score.argmax(axis=1)
    confusion = np.bincount(label * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    hit = np.diag(confusion).astype(np.float64)
    support, called = confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = _ratio(2 * hit, support + called)
    recall = _ratio(hit, support)
    occurs = (support + called) > 0
    return {
        "accuracy": float(hit.sum() / len(label)),
        "macro_f1": float(f1[occurs].mean()),
        "balanced_accuracy": float(recall[support > 0].mean()),
        "images": len(label),
        "confusion": confusion,
        "per_class": {
            "f1": f1,
            "precision": _ratio(hit, called),
            "recall": recall,
            "support": support,
            "predicted": called,
        },
    }


def singlelabel_intervals(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of "accuracy" and "macro_f1" of `singlelabel_report`; arguments as there."""
    score, label = _single(scores, targets)
    predicted = score.argmax(axis=1)
    classes = np.arange(score.shape[1])
    is_label, is_called = label[:, None] == classes, predicted[:, None] == classes

    def summary(weights: Floats) -> dict[str, Floats]:
        hit = weights @ (is_label & is_called)
        either = weights @ is_label.astype(np.float64) + weights @ is_called.astype(np.float64)
        f1 = np.where(either > 0, _ratio(2 * hit, either), np.nan)
        return {"accuracy": hit.sum(axis=1) / len(label), "macro_f1": _nanmean(f1)}

    values = _over_draws(summary, len(label), n, seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        key: (float(low), float(high)) for key, (low, high) in ((k, np.quantile(v, tails)) for k, v in values.items())
    }


def positives(targets: npt.ArrayLike, positive_share: float) -> npt.NDArray[np.bool_]:
    """Return which targets are positive: those at or above `positive_share`, not NaN.

    Datasets store shares in float32, where 0.7 and 0.9 are slightly smaller than in float64, so they are compared in
    float32.
    """
    return np.asarray(targets, dtype=np.float32) >= np.float32(positive_share)


def largest_labels(targets: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the class (N,) with the largest entry of each row of (N, K); −1 if an entry is NaN or none is above 0."""
    target = np.asarray(targets, dtype=np.float64)
    labelled = target.max(axis=1) > 0  # false for NaN as well
    return np.where(labelled, target.argmax(axis=1), -1).astype(np.int64)


class _Problem:
    """A validated multi-label problem; methods take weights (R, N), one row per resample, and return R values."""

    def __init__(
        self,
        scores: npt.ArrayLike,
        targets: npt.ArrayLike,
        thresholds: float | npt.ArrayLike,
        positive_share: float,
    ) -> None:
        self.scores = np.asarray(scores, dtype=np.float64)
        target = np.asarray(targets, dtype=np.float64)
        if self.scores.ndim != 2 or self.scores.shape != target.shape or not len(target):
            raise ValueError(f"scores {self.scores.shape} and targets {target.shape} must both be (N, K), N at least 1")
        if np.isnan(self.scores).any():
            raise ValueError("a score is NaN")
        self.images, self.classes = target.shape
        cut = np.asarray(thresholds, dtype=np.float64)
        if cut.shape not in ((), (1,), (self.classes,), target.shape):
            raise ValueError(
                f"thresholds {cut.shape} must be one number, one for each of {self.classes} classes, or {target.shape}"
            )
        if np.isnan(cut).any():
            raise ValueError("a threshold is NaN")
        self.thresholds = np.broadcast_to(cut.mean(axis=0) if cut.ndim == 2 else cut, (self.classes,)).copy()
        self.known = ~np.isnan(target)
        self.positive = positives(target, positive_share)
        self.predicted = self.known & (self.scores >= cut)

    def summary(self, weights: Floats) -> dict[str, Floats]:
        """Compute the scalars of `SUMMARY`, each (R,)."""
        classes = self.per_class(weights)
        hit, positive, predicted = (weights @ counts for counts in self._counts())
        all_hits, all_positives, all_predicted = hit.sum(axis=1), positive.sum(axis=1), predicted.sum(axis=1)
        precision, recall = classes["precision"].mean(axis=1), classes["recall"].mean(axis=1)
        micro_f1 = _ratio(2 * all_hits, all_positives + all_predicted)
        values = {
            "macro_f1": classes["f1"].mean(axis=1),
            "micro_f1": micro_f1,
            "samples_f1": self._samples_f1(weights),
            "CF1": _ratio(2 * precision * recall, precision + recall),
            "OF1": micro_f1,
            "macro_precision": precision,
            "macro_recall": recall,
            "micro_precision": _ratio(all_hits, all_predicted),
            "micro_recall": _ratio(all_hits, all_positives),
            "mAP": _nanmean(classes["AP"]),
            "mAP_voc": _nanmean(classes["AP_voc"]),
        }
        return {key: values[key] for key in SUMMARY}

    def per_class(self, weights: Floats) -> dict[str, Floats]:
        """Compute F1, precision, recall and average precisions of every class, each (R, K)."""
        hit, positive, predicted = (weights @ counts for counts in self._counts())
        exact = np.empty((len(weights), self.classes))
        voc = np.empty_like(exact)
        for k in range(self.classes):
            known = self.known[:, k]
            exact[:, k], voc[:, k] = _average_precision(
                self.scores[known, k], self.positive[known, k], weights[:, known]
            )
        return {
            "f1": _ratio(2 * hit, positive + predicted),
            "precision": _ratio(hit, predicted),
            "recall": _ratio(hit, positive),
            "AP": exact,
            "AP_voc": voc,
        }

    def _counts(self) -> tuple[Floats, Floats, Floats]:
        hit = self.positive & self.predicted
        return hit.astype(np.float64), self.positive.astype(np.float64), self.predicted.astype(np.float64)

    def _samples_f1(self, weights: Floats) -> Floats:
        """Mean F1 of the photos with at least one known label; a photo without any positive or prediction counts 0."""
        hit, positive, predicted = (counts.sum(axis=1) for counts in self._counts())
        f1 = _ratio(2 * hit, positive + predicted)
        labelled = self.known.any(axis=1).astype(np.float64)
        return _ratio(weights @ (f1 * labelled), weights @ labelled)


def mean_average_precision(scores: npt.ArrayLike, targets: npt.ArrayLike) -> float:
    """Compute only mAP of scores (N, K) and targets (N, K) in {0, 1}, much faster than a whole report.

    NaN if no class has positives.
    """
    score, positive = np.asarray(scores, dtype=np.float64), np.asarray(targets) > 0
    weights = np.ones((1, len(score)))
    found = [_average_precision(score[:, k], positive[:, k], weights)[0][0] for k in range(score.shape[1])]
    return float(_nanmean(np.array(found)))


def _average_precision(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Exact and VOC-interpolated average precision of one class for R rows of weights: two arrays (R,).

    Photos with equal scores enter together, as in scikit-learn.
    """
    order = np.argsort(-scores, kind="stable")
    places = np.flatnonzero(positive[order])
    if len(places) in (0, len(scores)):
        return np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    # Recall rises only at positives, so the curve's other steps contribute nothing.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    last = ends[np.unique(np.searchsorted(ends, places))]
    first_hits = np.searchsorted(places, np.append(0, last[:-1] + 1))
    gains = np.add.reduceat(weights[:, order[places]], first_hits, axis=1)
    hits = np.cumsum(gains, axis=1)
    seen = np.cumsum(np.add.reduceat(weights[:, order[: last[-1] + 1]], np.append(0, last[:-1] + 1), axis=1), axis=1)
    total = hits[:, -1]
    precision = _ratio(hits, seen)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        exact, voc = (gains * precision).sum(axis=1) / total, (gains * envelope).sum(axis=1) / total
    only_positives = weights[:, ~positive].sum(axis=1) == 0
    return np.where(only_positives, np.nan, exact), np.where(only_positives, np.nan, voc)


def _single(scores: npt.ArrayLike, targets: npt.ArrayLike) -> tuple[Floats, npt.NDArray[np.int64]]:
    score = np.asarray(scores, dtype=np.float64)
    target = np.asarray(targets)
    if score.ndim != 2 or target.shape not in (score.shape, score.shape[:1]):
        raise ValueError(f"scores {score.shape} must be (N, K) and targets {target.shape} (N,) or (N, K)")
    label = largest_labels(target) if target.ndim == 2 else target.astype(np.int64)
    if not (label >= 0).any():
        raise ValueError("no labelled photo")
    if label.max() >= score.shape[1]:
        raise ValueError(f"class index {label.max()} does not fit {score.shape[1]} scores")
    return score[label >= 0], label[label >= 0]


def _over_draws(summary: Callable[[Floats], dict[str, Floats]], images: int, n: int, seed: int) -> dict[str, Floats]:
    """Evaluate a summary of weights (R, images) on n draws with replacement, in blocks to limit memory."""
    rng = np.random.default_rng(seed)
    rows = max(1, _ENTRIES // images)
    parts = [summary(_draw(images, min(rows, n - done), rng)) for done in range(0, max(n, 1), rows)]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _draw(images: int, n: int, rng: np.random.Generator) -> Floats:
    """Draw counts (n, images) of photos, rows summing to `images`."""
    drawn = rng.integers(0, images, size=(n, images))
    flat = drawn + np.arange(n)[:, None] * images
    return np.bincount(flat.ravel(), minlength=n * images).reshape(n, images).astype(np.float64)


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Floats:
    """Divide; 0 where the denominator is 0."""
    out = np.zeros(np.shape(numerator), dtype=np.float64)
    np.divide(numerator, denominator, out=out, where=denominator > 0)
    return out


def _nanmean(values: Floats) -> Floats:
    """Mean over the last axis, ignoring NaN; NaN if all are."""
    valid = ~np.isnan(values)
    count = valid.sum(axis=-1)
    total = np.where(valid, values, 0).sum(axis=-1)
    return np.where(count > 0, _ratio(total, count), np.nan)
