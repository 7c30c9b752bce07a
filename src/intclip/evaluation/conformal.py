"""Conformal label sets with a guaranteed miss rate, for photos exchangeable with the calibration photos.

Two guarantees, without assumptions on the model:

* `miss_rate_threshold`: the expected share of a photo's true labels that its set misses is at most α (conformal risk
  control; Angelopoulos et al., ICLR 2024, with the false-negative rate as risk).
* `class_miss_rate_thresholds`: of the photos with class k, at most a share α misses it, for every k
  (class-conditional split conformal).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intclip.metrics import Floats, positives


def miss_rate_threshold(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, miss_rate: float = 0.1, positive_share: float = 0.5
) -> float:
    """Find the largest threshold t whose sets {k: score ≥ t} satisfy (Σᵢ missᵢ(t) + 1) / (n + 1) ≤ α.

    missᵢ is the share of photo i's true labels with a score below t. Photos without true
    labels are ignored; the guarantee is for photos that have one.

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K), 0/1 or soft; NaN where unknown.
        miss_rate: α in (0, 1).
        positive_share: A soft target counts as true at or above it.

    Returns:
        The threshold; −inf (every label is in the set) if there are too few photos for this α: n < 1/α − 1.

    Raises:
        ValueError: α is not in (0, 1), or shapes do not match.
    """
    score, positive = _checked(scores, targets, miss_rate, positive_share)
    labels = positive.sum(axis=1)
    photos = int((labels > 0).sum())
    allowed = miss_rate * (photos + 1) - 1
    if allowed < 0:
        return float("-inf")
    rows, columns = np.nonzero(positive)
    order = np.argsort(score[rows, columns], kind="stable")
    ascending = score[rows, columns][order]
    # A threshold just above the i-th smallest true score misses the first i of them.
    missed = np.cumsum(1 / labels[rows[order]])
    return float(ascending[np.argmax(missed > allowed + 1e-9)])


def class_miss_rate_thresholds(
    scores: npt.ArrayLike, targets: npt.ArrayLike, *, miss_rate: float = 0.1, positive_share: float = 0.5
) -> Floats:
    """Find thresholds (K,) such that each class is missed on at most a share α of its photos.

    The threshold of class k is the ⌊α(n + 1)⌋-th smallest score of its n positives, or −inf if n is too
    small for this α (then the class is in every set).

    Args:
        scores: (N, K) in [0, 1].
        targets: (N, K), 0/1 or soft; NaN where unknown.
        miss_rate: α in (0, 1).
        positive_share: A soft target counts as true at or above it.

    Raises:
        ValueError: α is not in (0, 1), or shapes do not match.
    """
    score, positive = _checked(scores, targets, miss_rate, positive_share)
    thresholds = np.full(score.shape[1], -np.inf)
    for k in range(score.shape[1]):
        own = np.sort(score[positive[:, k], k])
        rank = int(np.floor(miss_rate * (len(own) + 1) + 1e-12))
        if rank >= 1:
            thresholds[k] = own[min(rank, len(own)) - 1]
    return thresholds


def label_sets(scores: npt.ArrayLike, thresholds: float | npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return membership (N, K): score at or above the threshold, one for all or one per class (K,)."""
    return np.asarray(scores, dtype=np.float64) >= np.asarray(thresholds, dtype=np.float64)


@dataclass(frozen=True)
class SetReport:
    """Statistics of label sets on a split.

    Attributes:
        miss_rate: Mean share of a photo's true labels that its set misses, over photos with true labels.
        class_miss_rates: (K,) share of each class's positives that are missed; NaN without positives.
        size: Mean number of labels in a set.
        empty: Share of empty sets.
    """

    miss_rate: float
    class_miss_rates: Floats
    size: float
    empty: float


def set_report(sets: npt.NDArray[np.bool_], targets: npt.ArrayLike, *, positive_share: float = 0.5) -> SetReport:
    """Measure label sets (N, K) on targets (N, K), NaN where unknown."""
    target = np.asarray(targets, dtype=np.float64)
    positive = positives(target, positive_share)
    missed = positive & ~sets
    labels = positive.sum(axis=1)
    with np.errstate(invalid="ignore"):
        by_class = missed.sum(axis=0) / positive.sum(axis=0)
    has = labels > 0
    rate = float((missed.sum(axis=1)[has] / labels[has]).mean()) if has.any() else float("nan")
    size = sets.sum(axis=1)
    return SetReport(rate, by_class, float(size.mean()), float((size == 0).mean()))


def _checked(
    scores: npt.ArrayLike, targets: npt.ArrayLike, miss_rate: float, positive_share: float
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    score, target = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    if score.ndim != 2 or score.shape != target.shape:
        raise ValueError(f"scores {score.shape} and targets {target.shape} must both be (N, K)")
    if not 0 < miss_rate < 1:
        raise ValueError(f"miss rate {miss_rate} must lie between 0 and 1")
    return score, positives(target, positive_share)
