"""Thresholds, compared with brute force and the published protocol."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from intclip.metrics import multilabel_report
from intclip.thresholds import GRID, tune_threshold


def problem(images: int = 300, classes: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, classes)) < np.linspace(0.02, 0.4, classes)).astype(float)
    return np.clip(0.25 * targets + 0.6 * rng.random((images, classes)), 0, 1), targets


def published(scores: np.ndarray, targets: np.ndarray) -> float:
    """Intentonomy's procedure: the first best macro F1 over linspace(0.05, 0.95, 19), predicting strictly above."""
    grid = np.linspace(0.05, 0.95, 19)
    return float(grid[np.argmax([f1_score(targets, scores > t, average="macro", zero_division=0) for t in grid])])


@pytest.mark.parametrize("seed", range(5))
def test_the_global_threshold_follows_the_published_protocol(seed: int) -> None:
    scores, targets = problem(seed=seed)
    test_scores, test_targets = problem(seed=seed + 100)
    threshold = tune_threshold(scores, targets, ties="first")
    assert isinstance(threshold, float)
    assert threshold == pytest.approx(published(scores, targets))
    for average in ("macro", "micro", "samples"):
        expected = f1_score(test_targets, test_scores > threshold, average=average, zero_division=0)
        report = multilabel_report(test_scores, test_targets, thresholds=threshold)
        assert report[f"{average}_f1"] == pytest.approx(expected)


@pytest.mark.parametrize("objective", ["macro_f1", "micro_f1", "samples_f1", "mean_f1"])
def test_nothing_on_the_grid_is_better(objective: str) -> None:
    scores, targets = problem(seed=7)
    targets[::17] = np.nan

    def value(threshold: float) -> float:
        report = multilabel_report(scores, targets, thresholds=threshold)
        f1 = [report[name] for name in ("macro_f1", "micro_f1", "samples_f1")]
        return float(np.mean(f1)) if objective == "mean_f1" else float(report[objective])

    best = tune_threshold(scores, targets, objective=objective)
    assert value(best) == pytest.approx(max(map(value, GRID)))


def test_thresholds_per_class_maximise_each_class() -> None:
    scores, targets = problem(seed=2)
    thresholds = tune_threshold(scores, targets, per_class=True)
    assert thresholds.shape == (6,)
    for k in range(6):
        best = max(f1_score(targets[:, k], scores[:, k] >= t, zero_division=0) for t in GRID)
        assert f1_score(targets[:, k], scores[:, k] >= thresholds[k], zero_division=0) == pytest.approx(best)


def test_ties_go_to_the_middle_or_the_first() -> None:
    scores, targets = [[0.92], [0.12]], [[1], [0]]
    assert tune_threshold(scores, targets) == pytest.approx(0.5)
    assert tune_threshold(scores, targets, ties="first") == pytest.approx(0.15)
    assert tune_threshold([[0.92], [0.62]], targets) == pytest.approx(0.65)


def test_shrinkage_moves_rare_classes_to_the_global_threshold() -> None:
    scores, targets = problem(seed=4)
    targets[:, 0] = 0
    overall = tune_threshold(scores, targets)
    free = tune_threshold(scores, targets, per_class=True)
    shrunk = tune_threshold(scores, targets, per_class=True, shrinkage=10)
    count = targets.sum(axis=0)
    np.testing.assert_allclose(shrunk, (count * free + 10 * overall) / (count + 10))
    assert free[0] == shrunk[0] == overall
    far = tune_threshold(scores, targets, per_class=True, shrinkage=1e9)
    np.testing.assert_allclose(far, overall, atol=1e-6)


def test_unknown_and_soft_targets() -> None:
    scores, targets = problem(seed=5)
    soft = np.where(targets > 0, 0.5, 0.4)
    assert tune_threshold(scores, soft) == tune_threshold(scores, targets)
    unknown = targets.copy()
    unknown[:, 1] = np.nan
    others = [0, 2, 3, 4, 5]
    assert tune_threshold(scores, unknown) == tune_threshold(scores[:, others], targets[:, others])
    scores[10:20, 3], unknown[10:20, 3] = 1, np.nan  # predictions of unknown labels are not errors
    rows = np.delete(np.arange(len(scores)), np.arange(10, 20))
    alone = tune_threshold(scores[rows, 3:4], targets[rows, 3:4], per_class=True)
    assert tune_threshold(scores[:, 3:4], unknown[:, 3:4], per_class=True) == alone


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1\).*\(1, 2\)"):
        tune_threshold([[0.1]], [[1, 0]])
    with pytest.raises(ValueError, match="grid"):
        tune_threshold([[0.1]], [[1]], grid=[])
    with pytest.raises(ValueError, match="grid"):
        tune_threshold([[0.1]], [[1]], grid=[0.5, float("nan")])
    with pytest.raises(ValueError, match="N at least 1"):
        tune_threshold(np.zeros((0, 2)), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="shrinkage inf must be"):
        tune_threshold(np.zeros((2, 2)), np.zeros((2, 2)), per_class=True, shrinkage=np.inf)
    with pytest.raises(ValueError, match="a score is NaN"):
        tune_threshold([[float("nan"), 0.1]], [[1, 0]])
    with pytest.raises(ValueError, match="'f1'"):
        tune_threshold([[0.1]], [[1]], objective="f1")
    with pytest.raises(ValueError, match="'last'"):
        tune_threshold([[0.1]], [[1]], ties="last")
    with pytest.raises(ValueError, match="per class"):
        tune_threshold([[0.1]], [[1]], per_class=True, objective="micro_f1")


@pytest.mark.parametrize("objective", ["micro_f1", "samples_f1", "mean_f1"])
@pytest.mark.parametrize("seed", range(4))
def test_every_objective_is_that_of_the_reports(objective: str, seed: int) -> None:
    """If objectives disagree, each has its own threshold; photos without known labels are ignored."""
    rng = np.random.default_rng(seed)
    scores = rng.random((40, 5)) ** np.linspace(0.3, 4, 5)
    targets = (rng.random((40, 5)) < scores).astype(float)
    targets[::7] = np.nan
    targets[1, 2] = np.nan
    reports = [multilabel_report(scores, targets, thresholds=t) for t in GRID]
    parts = {name: np.array([report[name] for report in reports]) for name in ("macro_f1", "micro_f1", "samples_f1")}
    values = sum(parts.values()) / 3 if objective == "mean_f1" else parts[objective]
    best = np.asarray(GRID)[np.flatnonzero(values >= values.max() - 1e-12)]
    assert tune_threshold(scores, targets, objective=objective) in best
    assert tune_threshold(scores, targets, objective=objective, ties="first") == pytest.approx(best[0])


def test_a_score_at_the_threshold_is_predicted() -> None:
    assert tune_threshold([[0.5], [0.25]], [[1], [0]], grid=[0.25, 0.5]) == 0.5


def test_a_class_of_one_positive_keeps_its_own_threshold_and_ties_go_to_the_first() -> None:
    scores = np.array([[0.85, 0.9], [0.1, 0.8], [0.1, 0.1], [0.1, 0.1]])
    targets = np.array([[1, 1], [0, 1], [0, 0], [0, 0]])
    grid = [0.2, 0.6, 0.84]
    overall = tune_threshold(scores, targets, grid=grid)
    first = tune_threshold(scores, targets, grid=grid, per_class=True, ties="first")
    np.testing.assert_allclose(first, [0.2, 0.2])
    shrunk = tune_threshold(scores, targets, grid=grid, per_class=True, ties="first", shrinkage=1.0)
    # One positive, and one pseudo-positive for the global threshold; then two and one.
    one = tune_threshold(scores, targets, grid=grid, ties="first")
    np.testing.assert_allclose(shrunk, [(0.2 + one) / 2, (2 * 0.2 + one) / 3])
    assert overall in grid


def test_the_one_positive_of_a_class_decides_its_threshold() -> None:
    # F1 at 0.3 and 0.65: of the first class 2·2/(2 + 6) and 1, of the second 2/(1 + 6) and 0; so the mean prefers 0.65.
    scores = np.array([[0.9, 0.5], [0.8, 0.4], [0.4, 0.4], [0.4, 0.4], [0.4, 0.4], [0.4, 0.4]])
    targets = np.array([[1, 1], [1, 0], [0, 0], [0, 0], [0, 0], [0, 0]])
    assert tune_threshold(scores, targets, grid=[0.3, 0.65]) == 0.65
    np.testing.assert_allclose(tune_threshold(scores, targets, grid=[0.3, 0.65], per_class=True), [0.65, 0.3])
    scores[:, 1] = [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]  # now both are equally good for it
    np.testing.assert_allclose(tune_threshold(scores, targets, grid=[0.3, 0.65], per_class=True), [0.65, 0.65])
    first = tune_threshold(scores, targets, grid=[0.3, 0.65], per_class=True, ties="first")
    np.testing.assert_allclose(first, [0.65, 0.3])
