"""Curves and confusions agree with slow references and independent libraries."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, precision_recall_curve

from intclip.evaluation.curves import (
    best_and_worst,
    confusion,
    cooccurrence,
    decide,
    photo_losses,
    precision_recall,
    threshold_curves,
)
from intclip.metrics import SUMMARY, bootstrap_differences, multilabel_report

PHOTOS, CLASSES = 60, 4


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    targets = (rng.random((PHOTOS, CLASSES)) < 0.3).astype(float)
    scores = (0.3 * targets + 0.7 * rng.random((PHOTOS, CLASSES))).round(2)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    return scores, targets


def test_threshold_curves_are_the_reports_at_each_threshold(problem):
    curves = threshold_curves(decide(*problem, 0.5), [0.2, 0.4, 0.61])
    for i, level in enumerate(curves["threshold"]):
        report = multilabel_report(*problem, thresholds=level)
        for key in ("macro_f1", "micro_f1", "samples_f1"):
            assert curves[key][i] == pytest.approx(report[key]), (level, key)


def test_precision_recall_lies_on_scikit_learn_s_curve(problem):
    scores, targets = problem
    decisions = decide(scores, targets, 0.5)
    for label in range(CLASSES):
        known = ~np.isnan(targets[:, label])
        precision, recall, _ = precision_recall_curve(targets[known, label], scores[known, label])
        best = {round(r, 9): max(precision[np.isclose(recall, r)]) for r in recall}
        ours = precision_recall(decisions, label, points=500)
        assert ours[1][-1] == 1
        assert len(ours[0]) == len({r for r in best if r > 0})
        for p, r in zip(*ours, strict=True):
            assert p == pytest.approx(best[round(r, 9)])
        assert len(precision_recall(decisions, label, points=5)[0]) <= 5
    nothing = decide(scores, np.zeros_like(scores), 0.5)
    assert len(precision_recall(nothing, 0)[0]) == 0


def test_confusion_and_cooccurrence_count_photos(problem):
    decisions = decide(*problem, 0.5)
    wrong, together = confusion(decisions), cooccurrence(decisions.positive)
    for i in range(CLASSES):
        rows = [n for n in range(PHOTOS) if decisions.positive[n, i]]
        for j in range(CLASSES):
            both = [n for n in rows if decisions.positive[n, j]]
            called = [n for n in rows if decisions.predicted[n, j] and (i == j or not decisions.positive[n, j])]
            assert together[i, j] == pytest.approx(len(both) / len(rows))
            assert wrong[i, j] == pytest.approx(len(called) / len(rows))
    empty = cooccurrence(np.zeros((5, 2), dtype=bool))
    assert np.isnan(empty).all()


def test_exclusive_labels_have_one_decision_and_rows_that_sum_to_one():
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(3), 40)
    targets = np.eye(3)[rng.integers(0, 3, 40)]
    targets[0], targets[1] = np.nan, 0  # unknown, and without a label
    decisions = decide(scores, targets, None)
    assert (decisions.predicted.sum(axis=1)[2:] == 1).all()
    assert not (decisions.known | decisions.positive | decisions.predicted)[:2].any()
    np.testing.assert_allclose(confusion(decisions).sum(axis=1), 1)
    losses = photo_losses(decisions, exclusive=True)
    assert np.isnan(losses[:2]).all()
    assert losses[2:].mean() == pytest.approx(log_loss(targets[2:].argmax(axis=1), scores[2:], labels=[0, 1, 2]))


def test_losses_are_scikit_learn_s_over_known_labels(problem):
    scores, targets = problem
    decisions = decide(scores, targets, 0.5)
    losses = photo_losses(decisions)
    for row in range(PHOTOS):
        known = ~np.isnan(targets[row])
        expected = log_loss(targets[row, known], scores[row, known], labels=[0, 1])
        assert losses[row] == pytest.approx(expected)
    best, worst = best_and_worst(losses, decisions, 5)
    labelled = losses[decisions.positive.any(axis=1)]
    assert losses[best[0]] == labelled.min()
    assert losses[worst[0]] == labelled.max()
    assert list(losses[best]) == sorted(losses[best])


def test_differences_of_two_models(problem):
    scores, targets = problem
    worse = np.clip(scores + np.random.default_rng(2).normal(0, 0.3, scores.shape), 0, 1)
    found = bootstrap_differences(scores, worse, targets, thresholds=(0.5, 0.4), n=200)
    ours, theirs = multilabel_report(scores, targets), multilabel_report(worse, targets, thresholds=0.4)
    drawn = np.random.default_rng(0).integers(0, PHOTOS, size=(200, PHOTOS))
    pairs = [
        (multilabel_report(scores[rows], targets[rows]), multilabel_report(worse[rows], targets[rows], thresholds=0.4))
        for rows in drawn
    ]
    for key in SUMMARY:
        expected = np.nanquantile([first[key] - second[key] for first, second in pairs], [0.025, 0.975])
        assert found[key] == pytest.approx((ours[key] - theirs[key], *expected))
    same = bootstrap_differences(scores, scores, targets, n=50)
    assert all(value == (0, 0, 0) for value in same.values())
