import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score

from fakes import tiny_taxonomy
from intclip.errors import DatasetError
from intclip.evaluation.evaluate import align_targets
from intclip.evaluation.report import markdown_table, percent, render, render_run, write_predictions, write_report
from intclip.evaluation.scoring import (
    Scores,
    headline,
    make_report,
    subsets,
    to_json,
)
from intclip.labels import load_taxonomy
from intclip.metrics import bootstrap_intervals, multilabel_report, singlelabel_intervals
from intclip.training.recipe import load_recipe
from intclip.training.scoring import choose_thresholds, selection_value

RNG = np.random.default_rng(0)
TARGETS = (RNG.random((60, 5)) < 0.4).astype(np.float32)
PROBABILITIES = np.clip(0.5 * TARGETS + RNG.random((60, 5)) * 0.6, 0, 1).astype(np.float32)
SCORES = Scores([f"p{i}" for i in range(60)], PROBABILITIES, TARGETS, ["gone"])


def protocol(*overrides):
    return load_recipe("tiny", list(overrides)).evaluate


def test_report_is_scikit_learns_with_intervals_and_subsets():
    report = make_report(SCORES, "multilabel", tiny_taxonomy(), 0.5, positive_share=0.5, draws=200)
    predicted = PROBABILITIES >= 0.5
    for average in ("macro", "micro", "samples"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = f1_score(TARGETS, predicted, average=average, zero_division=0)
        assert report[f"{average}_f1"] == pytest.approx(expected, abs=1e-9)
    assert report["mAP"] == pytest.approx(average_precision_score(TARGETS, PROBABILITIES, average="macro"), abs=1e-9)
    low, high = report["intervals"]["macro_f1"]
    assert low < report["macro_f1"] < high
    assert report["labels"] == list(tiny_taxonomy().names)
    assert report["unreadable"] == ["gone"]
    json.dumps(report, allow_nan=False)


def test_a_report_says_how_it_was_made():
    each = np.linspace(0.3, 0.7, 60)[:, None] + np.linspace(-0.1, 0.1, 5)
    for thresholds, told in ((0.4, 0.4), (each[0], each[0].tolist()), (each, each.mean(axis=0).tolist())):
        report = make_report(SCORES, "multilabel", tiny_taxonomy(), thresholds, positive_share=0.6, draws=30, seed=3)
        assert report["positive_share"] == 0.6
        assert report["thresholds"] == pytest.approx(told)
        decided = multilabel_report(PROBABILITIES, TARGETS, thresholds=thresholds, positive_share=0.6)
        assert report["macro_f1"] == decided["macro_f1"]
        expected = bootstrap_intervals(PROBABILITIES, TARGETS, thresholds=thresholds, n=30, seed=3, positive_share=0.6)
        assert report["intervals"] == to_json(expected)
        assert set(headline(report, "multilabel")) == {"macro_f1", "micro_f1", "samples_f1", "mAP"}


def test_intentonomys_subsets_are_class_indices():
    found = subsets(load_taxonomy("intentonomy"))
    assert found["easy"] == [0, 7, 19]
    assert found["hard"] == [2, 5, 8, 17, 20, 21, 23, 24, 25, 27]
    assert found["object"] == [0, 3, 10, 11, 12, 16, 23]
    assert found["context"] == [7, 8]
    targets = np.tile(TARGETS, (1, 6))[:, :28]
    scores = Scores(SCORES.ids, np.tile(PROBABILITIES, (1, 6))[:, :28], targets, [])
    report = make_report(scores, "multilabel", load_taxonomy("intentonomy"), 0.5, positive_share=0.5)
    easy = [report["per_class"]["f1"][k] for k in (0, 7, 19)]
    assert report["subsets"]["easy"]["macro_f1"] == pytest.approx(np.mean(easy))
    assert "| easy |" in render(report, "multilabel", "t")


def test_subsets_of_one_name_stay_apart_and_empty_ones_have_no_figures():
    first, *others = tiny_taxonomy().names
    partitions = {"ease": {"easy": (first,), "other": tuple(others)}, "kind": {"other": (first, *others), "none": ()}}
    taxonomy = replace(tiny_taxonomy(), subsets=partitions)
    assert subsets(taxonomy) == {"easy": [0], "ease: other": [1, 2, 3, 4], "kind: other": [0, 1, 2, 3, 4]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the mean of no class
        report = make_report(SCORES, "multilabel", taxonomy, 0.5, positive_share=0.5)
    assert report["subsets"]["kind: other"]["macro_f1"] == pytest.approx(report["macro_f1"])


def test_an_interval_from_zero_on_is_told():
    report = make_report(SCORES, "multilabel", tiny_taxonomy(), 0.5, positive_share=0.5)
    report["intervals"] = {"macro_f1": (0.0, 0.5), "mAP": (None, None)}
    text = render(report, "multilabel", "t")
    assert f"| Macro F1 | {percent(report['macro_f1'])} | 0.00 – 50.00 |" in text
    assert f"| mAP | {percent(report['mAP'])} |  |" in text


def test_single_label_report_takes_the_most_probable():
    targets = np.eye(5, dtype=np.float32)[RNG.integers(0, 5, 60)]
    scores = Scores(SCORES.ids, PROBABILITIES, targets, [])
    report = make_report(scores, "singlelabel", tiny_taxonomy(), 0.5, positive_share=0.5, draws=50, seed=4)
    assert report["accuracy"] == pytest.approx(accuracy_score(targets.argmax(1), PROBABILITIES.argmax(1)))
    assert set(headline(report, "singlelabel")) == {"accuracy", "macro_f1"}
    assert report["intervals"] == to_json(singlelabel_intervals(PROBABILITIES, targets, n=50, seed=4))
    assert "intervals" not in make_report(scores, "singlelabel", tiny_taxonomy(), 0.5, positive_share=0.5)
    assert selection_value(report, "singlelabel", "mean") == report["accuracy"]
    assert selection_value(report, "singlelabel", "mAP") == report["accuracy"]
    assert "The most probable class is predicted" in render(report, "singlelabel", "t")


def test_selection_is_the_mean_of_four_or_one_of_them():
    report = make_report(SCORES, "multilabel", tiny_taxonomy(), 0.5, positive_share=0.5)
    four = [report[key] for key in ("macro_f1", "micro_f1", "samples_f1", "mAP")]
    assert selection_value(report, "multilabel", "mean") == pytest.approx(np.mean(four))
    assert selection_value(report, "multilabel", "mAP") == report["mAP"]


def test_thresholds_follow_the_protocol():
    fixed = protocol("evaluate.thresholds=fixed", "evaluate.threshold=0.3")
    assert choose_thresholds(SCORES, "multilabel", fixed, 0.5) == 0.3
    tuned = choose_thresholds(SCORES, "multilabel", protocol(), 0.5)
    macro = [f1_score(TARGETS, t <= PROBABILITIES, average="macro", zero_division=0) for t in np.arange(1, 20) / 20]
    assert macro[round(tuned * 20) - 1] == max(macro)
    each = choose_thresholds(SCORES, "multilabel", protocol("evaluate.thresholds=per_class"), 0.5)
    assert each.shape == (5,)
    assert choose_thresholds(None, "multilabel", protocol("evaluate.threshold=0.4"), 0.5) == 0.4
    assert choose_thresholds(SCORES, "singlelabel", protocol(), 0.5) == 0.5


def test_report_and_predictions_are_written_whole(tmp_path):
    import pyarrow.parquet as pq

    report = make_report(SCORES, "multilabel", tiny_taxonomy(), 0.5, positive_share=0.5, draws=20)
    write_report(tmp_path, "report-val", report, "multilabel", "a | b")
    assert json.loads((tmp_path / "report-val.json").read_text()) == report
    text = (tmp_path / "report-val.md").read_text()
    assert "60 photos, and 1 unreadable, which are ignored" in text
    assert f"| mAP | {100 * report['mAP']:.2f} |" in text
    write_predictions(tmp_path / "p.parquet", SCORES, tiny_taxonomy().names)
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names[:2] == ["id", "class 0"]
    np.testing.assert_array_equal(table["class 3"].to_numpy(), PROBABILITIES[:, 3])
    np.testing.assert_array_equal(table["target: class 3"].to_numpy(), TARGETS[:, 3])


def test_an_interval_that_begins_at_zero_is_told():
    report = make_report(SCORES, "multilabel", tiny_taxonomy(), 0.5, positive_share=0.5, draws=0)
    assert f"| mAP | {100 * report['mAP']:.2f} |  |" in render(report, "multilabel", "t"), "none was drawn"
    told = render(report | {"intervals": {"mAP": [0.0, 0.125]}}, "multilabel", "t")
    assert f"| mAP | {100 * report['mAP']:.2f} | 0.00 – 12.50 |" in told


def test_numbers_become_plain_json():
    assert to_json({"a": np.float32(0.5), 1: [np.nan, np.int64(2)], "t": (np.array([1.0, np.nan]),)}) == {
        "a": 0.5,
        "1": [None, 2],
        "t": [[1.0, None]],
    }
    assert (percent(None), percent(0.12345)) == ("–", "12.35")
    assert markdown_table(["a", "b|c"], [["x", "y"]]) == "| a | b\\|c |\n| --- | ---: |\n| x | y |\n"


def test_a_run_is_shown_in_one_table():
    metrics = {
        "splits": {"val": {"photos": 3, "headline": {"mAP": 0.5}}, "test": {"photos": 4, "headline": {"mAP": None}}},
        "best": {"epoch": 2},
        "epochs": 5,
        "selected_on": "val",
        "method": "intclip",
        "backbone": "lite",
        "dataset": "d",
        "learnable_parameters": 1234567,
        "seconds": 90.0,
    }
    text = render_run(metrics)
    assert "epoch 2 of 5, selected on val; 1,234,567 learnable parameters, 1.5 min" in text
    assert "| test | 4 | – |" in text


def test_targets_take_the_models_order():
    five = tiny_taxonomy()
    turned = type(five)(**{**vars(five), "names": five.names[::-1]})
    np.testing.assert_array_equal(align_targets(TARGETS, turned, five), TARGETS[:, ::-1])
    assert align_targets(TARGETS, five, five) is TARGETS
    with pytest.raises(DatasetError, match="such as 'class 3'"):
        align_targets(TARGETS, tiny_taxonomy(3), tiny_taxonomy(5))
