"""Conformal sets: the guarantee holds on average over exchangeable draws, and is as tight as expected."""

import numpy as np
import pytest

from intclip.evaluation.conformal import class_miss_rate_thresholds, label_sets, miss_rate_threshold, set_report


def draw(rng: np.random.Generator, images: int, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    targets = (rng.random((images, classes)) < np.linspace(0.1, 0.5, classes)).astype(float)
    return 1 / (1 + np.exp(-(1.5 * targets + rng.normal(-1, 1, targets.shape)))), targets


def slow_threshold(scores: np.ndarray, targets: np.ndarray, miss_rate: float) -> float:
    """Return the largest score with an allowed corrected risk, by trying each."""
    has = targets.sum(axis=1) > 0
    best = -np.inf
    for t in np.unique(scores[targets > 0]):
        miss = ((targets > 0) & (scores < t)).sum(axis=1)[has] / targets.sum(axis=1)[has]
        if (miss.sum() + 1) / (has.sum() + 1) <= miss_rate + 1e-12:
            best = max(best, float(t))
    return best


@pytest.mark.parametrize("miss_rate", [0.05, 0.1, 0.3])
def test_the_threshold_is_the_largest_that_keeps_the_promise(miss_rate: float) -> None:
    rng = np.random.default_rng(0)
    for images in (5, 40, 150):
        scores, targets = draw(rng, images)
        scores = np.round(scores, 2)  # with ties
        assert miss_rate_threshold(scores, targets, miss_rate=miss_rate) == slow_threshold(scores, targets, miss_rate)


def test_expected_miss_rate_on_exchangeable_draws() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(400):
        scores, targets = draw(rng, 200)
        threshold = miss_rate_threshold(scores[:100], targets[:100], miss_rate=0.2)
        rates.append(set_report(label_sets(scores[100:], threshold), targets[100:]).miss_rate)
    error = np.std(rates) / np.sqrt(len(rates))
    assert np.mean(rates) <= 0.2 + 2 * error
    # Angelopoulos et al., Theorem 2: no more than 2B/(n + 1) below the promise; about 98 photos have a label.
    assert np.mean(rates) >= 0.2 - 2 / 98 - 2 * error


def test_class_conditional_coverage_is_between_its_bounds() -> None:
    rng = np.random.default_rng(2)
    rates = []
    for _ in range(400):
        scores, targets = draw(rng, 400)
        thresholds = class_miss_rate_thresholds(scores[:200], targets[:200], miss_rate=0.15)
        rates.append(set_report(label_sets(scores[200:], thresholds), targets[200:]).class_miss_rates)
    mean, error = np.nanmean(rates, axis=0), np.nanstd(rates, axis=0) / np.sqrt(len(rates))
    assert (mean <= 0.15 + 2.5 * error).all()
    assert (mean >= 0.15 - 1 / (200 * np.linspace(0.1, 0.5, 6)) - 0.01).all()


def test_class_threshold_is_an_order_statistic() -> None:
    scores = np.arange(1, 20)[:, None] / 20
    # 19 positives: ⌊0.1 · 20⌋ = 2nd smallest.
    assert class_miss_rate_thresholds(scores, np.ones_like(scores), miss_rate=0.1)[0] == pytest.approx(0.1)
    # 18: ⌊0.1 · 19⌋ = 1st; 9 and 8: ⌊0.1 · 10⌋ = 1st, ⌊0.1 · 9⌋ = 0, which is none.
    for images, expected in ((18, 0.05), (9, 0.05), (8, -np.inf)):
        found = class_miss_rate_thresholds(scores[:images], np.ones((images, 1)), miss_rate=0.1)[0]
        assert found == pytest.approx(expected)


def test_as_few_photos_as_a_miss_rate_allows() -> None:
    """n = 1/α − 1 photos: no label may be missed, so the threshold is the smallest score of a true label."""
    assert miss_rate_threshold([[0.7, 0.2], [0.1, 0.6], [0.3, 0.8]], [[1, 0], [0, 1], [1, 0]], miss_rate=0.25) == 0.3
    assert miss_rate_threshold([[0.7, 0.4]], [[1, 1]], miss_rate=0.5) == 0.4


def test_too_few_photos_give_the_whole_set() -> None:
    scores, targets = draw(np.random.default_rng(3), 8)
    threshold = miss_rate_threshold(scores, targets, miss_rate=0.05)
    assert threshold == -np.inf
    assert label_sets(scores, threshold).all()
    assert miss_rate_threshold(scores, np.zeros_like(targets)) == -np.inf
    assert (class_miss_rate_thresholds(scores, np.zeros_like(targets)) == -np.inf).all()


def test_report_counts_by_hand() -> None:
    sets = np.array([[True, False], [False, False], [True, True]])
    targets = np.array([[1, 1], [0, 0], [np.nan, 1]])
    report = set_report(sets, targets)
    assert report.miss_rate == pytest.approx((0.5 + 0) / 2)
    np.testing.assert_allclose(report.class_miss_rates, [0, 0.5])
    assert (report.size, report.empty) == (pytest.approx(1), pytest.approx(1 / 3))


def test_a_report_without_true_labels_has_no_miss_rate() -> None:
    report = set_report(np.array([[True, False]]), [[0, np.nan]])
    assert np.isnan(report.miss_rate)
    assert np.isnan(report.class_miss_rates).all()
    assert (report.size, report.empty) == (1, 0)


@pytest.mark.parametrize("miss_rate", [0.0, 1.0])
def test_bad_input_is_refused(miss_rate: float) -> None:
    with pytest.raises(ValueError, match=f"miss rate {miss_rate}"):
        miss_rate_threshold([[0.5]], [[1]], miss_rate=miss_rate)
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        miss_rate_threshold([0.5], [1])
