"""Metrics, compared with scikit-learn, a slow version of the published VOC procedure, and closed forms."""

import time

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional.classification import multilabel_average_precision, multilabel_f1_score

from intclip.evaluation.conformal import set_report
from intclip.evaluation.curves import decide
from intclip.metrics import (
    SUMMARY,
    bootstrap_differences,
    bootstrap_intervals,
    largest_labels,
    mean_average_precision,
    multilabel_report,
    singlelabel_intervals,
    singlelabel_report,
)
from intclip.thresholds import tune_threshold


def problem(images: int = 200, classes: int = 7, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, classes)) < np.linspace(0.03, 0.4, classes)).astype(float)
    scores = np.clip(0.3 * targets + 0.5 * rng.random((images, classes)), 0, 1)
    return (np.round(scores, 1) if ties else scores), targets


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("threshold", [0.5, 0.15, 0.99])
def test_agrees_with_scikit_learn(ties: bool, threshold: float) -> None:
    scores, targets = problem(ties=ties)
    report = multilabel_report(scores, targets, thresholds=threshold)
    predicted = (scores >= threshold).astype(int)
    for name, average in {"macro_f1": "macro", "micro_f1": "micro", "samples_f1": "samples"}.items():
        expected = sk.f1_score(targets, predicted, average=average, zero_division=0)
        assert report[name] == pytest.approx(expected, abs=1e-12)
    for kind in ("macro", "micro"):
        precision, recall, *_ = sk.precision_recall_fscore_support(targets, predicted, average=kind, zero_division=0)
        assert report[f"{kind}_precision"] == pytest.approx(precision, abs=1e-12)
        assert report[f"{kind}_recall"] == pytest.approx(recall, abs=1e-12)
    table = report["per_class"]
    f1 = sk.f1_score(targets, predicted, average=None, zero_division=0)
    np.testing.assert_allclose(table["f1"], f1, atol=1e-12)
    exact = sk.average_precision_score(targets, scores, average=None)
    np.testing.assert_allclose(table["AP"], exact, atol=1e-12)
    assert report["mAP"] == pytest.approx(exact.mean(), abs=1e-12)
    np.testing.assert_array_equal(table["support"], targets.sum(axis=0))
    assert table["support"].dtype == table["predicted"].dtype == np.int64
    np.testing.assert_array_equal(table["predicted"], predicted.sum(axis=0))
    assert (report["images"], report["labels_per_image"]) == (200, targets.sum() / 200)


def test_agrees_with_torchmetrics() -> None:
    scores, targets = problem()
    report = multilabel_report(scores, targets)
    score, target = torch.from_numpy(scores), torch.from_numpy(targets).long()
    expected = multilabel_average_precision(score, target, num_labels=7, average="macro")
    assert report["mAP"] == pytest.approx(expected.item(), abs=1e-6)
    expected = multilabel_f1_score(score, target, num_labels=7, average="macro")
    assert report["macro_f1"] == pytest.approx(expected.item(), abs=1e-6)


def test_overall_and_class_f1_are_harmonic_means() -> None:
    report = multilabel_report(*problem(), thresholds=0.3)
    cp, cr = report["macro_precision"], report["macro_recall"]
    assert report["CF1"] == pytest.approx(2 * cp * cr / (cp + cr))
    op, recall = report["micro_precision"], report["micro_recall"]
    assert report["OF1"] == pytest.approx(2 * op * recall / (op + recall)) == pytest.approx(report["micro_f1"])


def slow_voc(scores: np.ndarray, positive: np.ndarray) -> float:
    """VOC 2010 average precision, one photo at a time: area under the precision envelope."""
    hits, precisions, recalls = 0, [], []
    for rank, index in enumerate(np.argsort(-scores), start=1):
        hits += int(positive[index])
        precisions.append(hits / rank)
        recalls.append(hits / positive.sum())
    area, previous = 0.0, 0.0
    for i, recall in enumerate(recalls):
        area += (recall - previous) * max(precisions[i:])
        previous = recall
    return area


def test_voc_average_precision_follows_the_published_procedure() -> None:
    scores, targets = problem(seed=3)
    table = multilabel_report(scores, targets)["per_class"]
    expected = [slow_voc(scores[:, k], targets[:, k]) for k in range(targets.shape[1])]
    np.testing.assert_allclose(table["AP_voc"], expected, atol=1e-12)
    assert (table["AP_voc"] >= table["AP"] - 1e-12).all()


def test_hand_computed_average_precision() -> None:
    # Ranked: +, −, +, +: exact (1 + 2/3 + 3/4) / 3; the envelope raises 2/3 to 3/4.
    table = multilabel_report([[0.9], [0.8], [0.7], [0.6]], [[1], [0], [1], [1]])["per_class"]
    assert table["AP"][0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert table["AP_voc"][0] == pytest.approx((1 + 3 / 4 + 3 / 4) / 3)


def test_perfect_and_hopeless_scores() -> None:
    _, targets = problem()
    perfect = multilabel_report(targets, targets)
    for name in SUMMARY:
        if name == "samples_f1":  # photos without any label count 0, as in scikit-learn
            assert perfect[name] == pytest.approx((targets.sum(axis=1) > 0).mean())
        else:
            assert perfect[name] == pytest.approx(1)
    nothing = multilabel_report(np.zeros_like(targets), targets)
    assert nothing["macro_f1"] == nothing["micro_f1"] == nothing["samples_f1"] == nothing["CF1"] == 0
    assert nothing["mAP"] == pytest.approx(targets.mean(axis=0).mean())


def test_a_class_without_positives_has_no_average_precision() -> None:
    scores, targets = problem()
    targets[:, 2] = 0
    report = multilabel_report(scores, targets)
    assert np.isnan(report["per_class"]["AP"][2])
    assert report["mAP"] == pytest.approx(np.nanmean(report["per_class"]["AP"]))
    assert np.isfinite([report[name] for name in SUMMARY]).all()


def test_unknown_targets_count_nowhere() -> None:
    scores, targets = problem(images=120, classes=4)
    hidden = np.random.default_rng(1).random(targets.shape) < 0.3
    partly = np.where(hidden, np.nan, targets)
    table = multilabel_report(scores, partly, thresholds=0.4)["per_class"]
    for k in range(4):
        known = ~hidden[:, k]
        alone = multilabel_report(scores[known, k : k + 1], targets[known, k : k + 1], thresholds=0.4)["per_class"]
        for key in ("f1", "precision", "recall", "AP", "AP_voc", "support", "predicted"):
            assert table[key][k] == pytest.approx(alone[key][0])
    whole_row = np.vstack([targets, np.full((3, 4), np.nan)])
    more = multilabel_report(np.vstack([scores, np.ones((3, 4))]), whole_row)
    for name in SUMMARY:
        assert more[name] == pytest.approx(multilabel_report(scores, targets)[name])


def test_soft_targets_count_by_share_of_votes() -> None:
    scores, targets = problem()
    soft = np.where(targets > 0, 0.4, 0.2)
    assert multilabel_report(scores, soft, positive_share=0.4)["mAP"] == multilabel_report(scores, targets)["mAP"]


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.35, 0.6, 0.7, 0.9, 0.95])
def test_a_share_counts_from_itself_on(share: float) -> None:
    """Also in float32, as in datasets, where 0.7 and 0.9 are smaller."""
    scores, targets = problem()
    soft = np.where(targets > 0, share, np.nextafter(np.float32(share), np.float32(0)))
    for given in (soft, soft.astype(np.float32)):
        report = multilabel_report(scores, given, positive_share=share)
        assert report["mAP"] == multilabel_report(scores, targets)["mAP"]
        assert tune_threshold(scores, given, positive_share=share) == tune_threshold(scores, targets)
        assert (decide(scores, given, 0.5, positive_share=share).positive == (targets > 0)).all()
        sets = np.zeros(targets.shape, dtype=bool)
        assert set_report(sets, given, positive_share=share).miss_rate == 1


def test_thresholds_per_class_and_subsets() -> None:
    scores, targets = problem()
    thresholds = np.linspace(0.1, 0.7, 7)
    report = multilabel_report(scores, targets, thresholds=thresholds, subsets={"easy": [0, 3], "hard": [6]})
    expected = sk.f1_score(targets, scores >= thresholds, average=None, zero_division=0)
    np.testing.assert_allclose(report["per_class"]["f1"], expected)
    np.testing.assert_array_equal(report["per_class"]["threshold"], thresholds)
    assert report["subsets"]["easy"]["macro_f1"] == pytest.approx(expected[[0, 3]].mean())
    assert report["subsets"]["hard"]["mAP"] == pytest.approx(report["per_class"]["AP"][6])


@pytest.mark.parametrize(
    ("scores", "targets"), [(np.zeros((3, 2)), np.zeros((3, 3))), (np.full((2, 2), np.nan), np.zeros((2, 2)))]
)
def test_bad_input_is_refused(scores: npt.NDArray[np.float64], targets: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError):
        multilabel_report(scores, targets)


@pytest.mark.parametrize(("thresholds", "message"), [([0.1, 0.2, 0.3], r"\b7\b"), (float("nan"), "a threshold is NaN")])
def test_bad_thresholds_are_refused(thresholds: list[float] | float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        multilabel_report(*problem(), thresholds=thresholds)


@pytest.mark.parametrize("entries", [2**22, 60 * 7, 1])
def test_bootstrap_equals_reports_on_the_drawn_photos(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("intclip.metrics._ENTRIES", entries)
    scores, targets = problem(images=60, classes=4, ties=True)
    got = bootstrap_intervals(scores, targets, thresholds=0.4, n=50, seed=5, level=0.8)
    drawn = np.random.default_rng(5).integers(0, 60, size=(50, 60))
    reports = [multilabel_report(scores[rows], targets[rows], thresholds=0.4) for rows in drawn]
    assert set(got) == set(SUMMARY)
    for name in SUMMARY:
        low, high = np.quantile([report[name] for report in reports], [0.1, 0.9])
        assert got[name] == pytest.approx((low, high), abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_intervals_of_what_has_no_value_are_nan_without_a_warning() -> None:
    scores, targets = np.full((4, 2), 0.3), np.zeros((4, 2))
    assert np.isnan(bootstrap_intervals(scores, targets, n=5)["mAP"]).all()
    assert np.isnan(bootstrap_differences(scores, scores, targets, n=5)["mAP"]).all()


def test_bootstrap_is_seeded_covers_the_estimate_and_narrows_with_more_photos() -> None:
    scores, targets = problem(images=1200, classes=28)
    began = time.perf_counter()
    wide = bootstrap_intervals(scores[:150], targets[:150], seed=1)
    narrow = bootstrap_intervals(scores, targets, seed=1, n=300)
    assert time.perf_counter() - began < 30
    assert wide == bootstrap_intervals(scores[:150], targets[:150], seed=1)
    report = multilabel_report(scores, targets)
    for name in ("micro_f1", "samples_f1"):
        assert narrow[name][0] < report[name] < narrow[name][1]
        assert narrow[name][1] - narrow[name][0] < wide[name][1] - wide[name][0]


@pytest.mark.parametrize("as_rows", [False, True])
def test_single_label_agrees_with_scikit_learn(as_rows: bool) -> None:
    rng = np.random.default_rng(2)
    label = rng.integers(0, 5, 300)
    scores = rng.random((300, 6))
    scores[np.arange(300), label] += 0.4
    targets = np.eye(6)[label] if as_rows else label
    report = singlelabel_report(scores, targets)
    predicted = scores.argmax(axis=1)
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(label, predicted))
    assert report["macro_f1"] == pytest.approx(sk.f1_score(label, predicted, average="macro", zero_division=0))
    assert report["balanced_accuracy"] == pytest.approx(
        sk.recall_score(label, predicted, average="macro", labels=range(5))
    )
    np.testing.assert_array_equal(report["confusion"], sk.confusion_matrix(label, predicted, labels=range(6)))


def test_single_label_leaves_out_unlabelled_photos_and_refuses_bad_input() -> None:
    scores = np.eye(3)[[0, 1, 2, 0]]
    assert singlelabel_report(scores, [0, 1, 1, -1])["accuracy"] == pytest.approx(2 / 3)
    rows = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [np.nan, 0, 0]])
    assert singlelabel_report(scores, rows)["images"] == 3
    rows[2] = 0  # no label at all, and not the first one
    report = singlelabel_report(scores, rows)
    assert (report["images"], report["accuracy"], report["per_class"]["support"].tolist()) == (2, 1, [1, 1, 0])
    with pytest.raises(ValueError, match="class index 3"):
        singlelabel_report(scores, [0, 1, 2, 3])
    with pytest.raises(ValueError, match="no labelled"):
        singlelabel_report(scores, [-1, -1, -1, -1])


def test_single_label_intervals_equal_reports_on_the_drawn_photos() -> None:
    rng = np.random.default_rng(3)
    label, scores = rng.integers(0, 4, 50), rng.random((50, 4))
    got = singlelabel_intervals(scores, label, n=40, seed=9, level=0.5)
    drawn = np.random.default_rng(9).integers(0, 50, size=(40, 50))
    reports = [singlelabel_report(scores[rows], label[rows]) for rows in drawn]
    for name in ("accuracy", "macro_f1"):
        expected = tuple(np.quantile([report[name] for report in reports], [0.25, 0.75]))
        assert got[name] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("everywhere", [0.0, 1.0])
def test_a_label_without_positives_or_negatives_has_no_average_precision(everywhere):
    rng = np.random.default_rng(0)
    scores, targets = rng.random((30, 3)), (rng.random((30, 3)) < 0.4).astype(float)
    targets[:, 1] = everywhere
    targets[0, 1] = np.nan
    report = multilabel_report(scores, targets)
    assert np.isnan(report["per_class"]["AP"][1])
    assert np.isnan(report["per_class"]["AP_voc"][1])
    assert report["mAP"] == pytest.approx(report["per_class"]["AP"][[0, 2]].mean())
    alone = bootstrap_intervals(scores[:, [1]], targets[:, [1]], n=20)
    assert np.isnan(alone["mAP"]).all()


@pytest.mark.parametrize("ties", [False, True])
def test_map_alone_equals_the_reports(ties: bool) -> None:
    scores, targets = problem(images=80, ties=ties)
    assert mean_average_precision(scores, targets) == pytest.approx(
        multilabel_report(scores, targets)["mAP"], abs=1e-12
    )
    targets[:, 2] = 0  # a class without a positive is left out
    without = mean_average_precision(scores, targets)
    assert without == pytest.approx(multilabel_report(scores, targets)["mAP"], abs=1e-12)
    assert without == pytest.approx(sk.average_precision_score(np.delete(targets, 2, 1), np.delete(scores, 2, 1)))
    assert np.isnan(mean_average_precision(scores, np.zeros_like(targets)))


def test_differences_equal_those_of_reports_on_the_same_drawn_photos() -> None:
    first, targets = problem(images=60, classes=4, ties=True)
    second = np.clip(first + np.random.default_rng(1).normal(0, 0.2, first.shape), 0, 1)
    targets = np.where(targets > 0, 2 / 3, 1 / 3)  # positive from a share of 0.6
    options = {"positive_share": 0.6}
    got = bootstrap_differences(first, second, targets, thresholds=(0.4, 0.3), n=50, seed=5, level=0.8, **options)
    drawn = np.random.default_rng(5).integers(0, 60, size=(50, 60))

    def report(scores: np.ndarray, threshold: float, rows: np.ndarray | slice) -> dict[str, float]:
        return multilabel_report(scores[rows], targets[rows], thresholds=threshold, **options)

    whole = [report(scores, threshold, slice(None)) for scores, threshold in ((first, 0.4), (second, 0.3))]
    pairs = [(report(first, 0.4, rows), report(second, 0.3, rows)) for rows in drawn]
    assert set(got) == set(SUMMARY)
    for name in SUMMARY:
        low, high = np.quantile([ours[name] - theirs[name] for ours, theirs in pairs], [0.1, 0.9])
        assert got[name] == pytest.approx((whole[0][name] - whole[1][name], low, high), abs=1e-12)
    assert not np.any(list(bootstrap_differences(first, first, targets, n=20, **options).values()))
    with pytest.raises(ValueError, match="zip"):
        bootstrap_differences(first, second, targets, thresholds=(0.4, 0.3, 0.5), n=5)  # type: ignore[arg-type]


def test_single_label_classes_agree_with_scikit_learn_and_absent_ones_count_nowhere() -> None:
    label = np.array([0, 0, 1, 1, 1, 2])
    called = np.array([0, 1, 1, 1, 0, 2])
    report = singlelabel_report(np.eye(4)[called], label)  # class 3 occurs nowhere
    per_class = report["per_class"]
    assert set(per_class) == {"f1", "precision", "recall", "support", "predicted"}
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, called, labels=range(3))
    for name, expected in (("precision", precision), ("recall", recall), ("f1", f1), ("support", support)):
        np.testing.assert_allclose(per_class[name][:3], expected)
    np.testing.assert_array_equal(per_class["predicted"], [2, 3, 1, 0])
    assert per_class["f1"].dtype == np.float64
    assert report["macro_f1"] == pytest.approx(f1.mean())
    # Class 2 has one photo, and it counts.
    assert report["balanced_accuracy"] == pytest.approx(recall.mean())
    alone = singlelabel_report(np.eye(4)[[2]], [0])  # each of two classes occurs once, one as label and one as guess
    assert (alone["macro_f1"], alone["balanced_accuracy"], alone["accuracy"]) == (0, 0, 0)


def test_one_labelled_photo_of_the_first_class_is_enough_and_shapes_are_checked() -> None:
    assert singlelabel_report([[1, 0], [0, 1]], [0, -1])["accuracy"] == 1
    for scores, targets in (([0.1, 0.9], [0]), ([[0.1, 0.9]], [0, 1]), ([[[0.5]]], [[[1]]])):
        with pytest.raises(ValueError, match=r"scores \(.*\) .*targets \("):
            singlelabel_report(scores, targets)


def test_the_largest_label_of_a_row() -> None:
    rows = [[0.2, 0.8], [0, 0], [np.nan, 1], [1, 0]]
    assert largest_labels(rows).tolist() == [1, -1, -1, 0]
    assert largest_labels(np.array(rows, dtype=np.float32)).dtype == np.int64
