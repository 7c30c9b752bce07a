"""`intclip calibrate` on synthetic predictions whose calibration, coverage and thresholds are known."""

import errno
import json
import os
import struct
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from typer.testing import CliRunner

from fakes import tiny_taxonomy
from intclip.cli.main import app
from intclip.errors import DatasetError, StorageError
from intclip.evaluation import calibration_report as calibration_report_module
from intclip.evaluation.calibration import apply_temperature, reliability_curve
from intclip.evaluation.calibration_report import (
    SavedPredictions,
    calibration_report,
    fitted_temperature,
    read_predictions,
    render_calibration,
    write_temperature,
)
from intclip.evaluation.report import write_predictions, write_report
from intclip.evaluation.saved import read_evaluation
from intclip.evaluation.scoring import Scores, make_report
from intclip.inference.bundle import load_bundle
from intclip.thresholds import SHRINKAGE
from tiny_models import write_bundle

LABELS = [f"label {k}" for k in range(6)]


def predictions(photos: int = 4000, temperature: float = 1.0, seed: int = 0) -> SavedPredictions:
    """Targets drawn from the true probabilities; scores are those at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, (photos, len(LABELS)))
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float64)
    return SavedPredictions(LABELS, 1 / (1 + np.exp(-logits / temperature)), targets)


def test_calibrated_scores_keep_an_error_of_sampling_size():
    report = calibration_report(predictions())
    assert report["photos"] == {"fit": 2000, "report": 2000}
    assert report["temperature"] == pytest.approx(1, abs=0.05)
    for found in report["calibration"].values():
        # 12,000 entries in 15 bins of, at most, variance 1/4: about √(15 · 0.25 / 12,000) in the mean.
        assert found["ece"] < 0.018
        assert sum(found["curve"]["count"]) == 12_000
    brier = {name: found["brier"] for name, found in report["calibration"].items()}
    assert brier["temperature"] == pytest.approx(brier["none"], abs=1e-3)


def test_overconfident_scores_are_mended_by_either_map():
    report = calibration_report(predictions(temperature=0.4))
    assert report["temperature"] == pytest.approx(2.5, rel=0.06)
    before, *after = report["calibration"].values()
    assert before["ece"] > 0.08
    for found in after:
        assert found["ece"] < 0.02
        assert found["brier"] < before["brier"] - 0.01
    truth = calibration_report(predictions())["calibration"]["none"]
    assert report["calibration"]["temperature"]["brier"] == pytest.approx(truth["brier"], abs=1e-3)


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_label_sets_keep_their_promise_on_exchangeable_photos(alpha):
    """The guarantee holds in the mean over halves; the conformal bound is tight within about 1/(n + 1)."""
    reports = [calibration_report(predictions(1000, seed=s), miss_rate=alpha, seed=s) for s in range(8)]
    for promise in ("per photo", "per class"):
        sets = [report["sets"][promise] for report in reports]
        missed = [found["miss_rate"] for found in sets]
        by_class = np.nanmean([found["class_miss_rates"] for found in sets], axis=0)
        error = 3 * np.std(missed) / np.sqrt(len(missed))
        if promise == "per photo":
            assert alpha - 0.01 - error < np.mean(missed) < alpha + error
        else:
            assert (by_class < alpha + 0.04).all()
            assert (by_class > alpha - 0.05).all()
            assert abs(by_class.mean() - alpha) < 0.015
        assert all(found["coverage"] == pytest.approx(1 - found["miss_rate"]) for found in sets)
        assert all(0 < found["size"] <= 6 for found in sets)


def test_coverage_over_many_halves_is_the_mean_of_halves_drawn_one_by_one():
    photos = predictions(400)
    often = calibration_report(photos, miss_rate=0.2)["sets_over_halves"]["per photo"]
    single = [calibration_report(photos, miss_rate=0.2, seed=s)["sets"]["per photo"]["coverage"] for s in range(1, 21)]
    assert often["coverage"] == pytest.approx(np.mean(single), abs=4 * np.std(single) / np.sqrt(20))
    assert often["deviation"] == pytest.approx(np.std(single), rel=0.5)
    assert often["coverage"] > 0.8 - 0.01


def test_labels_of_their_own_level_need_thresholds_of_their_own():
    rng = np.random.default_rng(0)
    level = np.array([0.2, 0.2, 0.2, 0.8, 0.8, 0.8])  # where a label's positive and negative scores separate
    targets = (rng.random((800, 6)) < 0.3).astype(np.float64)
    scores = np.clip(level + np.where(targets > 0, 0.1, -0.1) + rng.normal(0, 0.04, targets.shape), 0, 1)
    kinds = calibration_report(SavedPredictions(LABELS, scores, targets))["thresholds"]
    assert kinds["per class"]["macro_f1"] > 0.97
    assert kinds["per class"]["macro_f1"] > kinds["global"]["macro_f1"] + 0.2
    tuned, shrunk, common = (np.array(kinds[k]["threshold"]) for k in ("per class", "per class, shrunk", "global"))
    apart = tuned != common
    assert apart.sum() >= 3
    np.testing.assert_allclose(shrunk[~apart], common, rtol=1e-12)
    # n from shrunk = (n · tuned + s · common) / (n + s): the positives among one half, whose deviation is below 7.
    n = SHRINKAGE * (common - shrunk[apart]) / (shrunk[apart] - tuned[apart])
    np.testing.assert_allclose(n, n.round(), atol=0.01)
    np.testing.assert_allclose(n, targets.sum(axis=0)[apart] / 2, atol=25)
    np.testing.assert_allclose(kinds["per class"]["threshold"], level, atol=0.06)


def test_the_command_reads_a_run_and_leaves_report_and_plot(tmp_path):
    made = predictions(300)
    scores = Scores([str(i) for i in range(300)], made.scores.astype(np.float32), made.targets.astype(np.float32), [])
    scores.targets[0, 0] = np.nan
    run = tmp_path / "run"
    run.mkdir()
    write_predictions(run / "predictions-val.parquet", scores, LABELS)
    (run / "report-val.json").write_text('{"positive_share": 0.25}')
    read = read_predictions(run / "predictions-val.parquet")
    assert read.labels == LABELS
    np.testing.assert_array_equal(read.scores.astype(np.float32), scores.probabilities)
    np.testing.assert_array_equal(read.targets.astype(np.float32), scores.targets)
    result = CliRunner().invoke(app, ["calibrate", str(run), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["arguments"]["positive_share"] == 0.25
    assert report == json.loads((run / "calibration-val.json").read_text())
    picture = (run / "calibration-val.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (720, 840)
    words = ["calibrate", str(run / "predictions-val.parquet"), "--out", str(tmp_path / "o")]
    text = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "| uncalibrated |" in text
    assert "| per class, shrunk |" in text
    left = {path.name for path in (tmp_path / "o").iterdir()}
    assert left == {f"calibration-val.{end}" for end in ("json", "md", "png")}
    (run / "report-val.json").write_text("[1]")
    with pytest.raises(DatasetError, match=r"report-val\.json"):
        CliRunner().invoke(app, ["calibrate", str(run)], catch_exceptions=False)


def test_one_label_a_photo_is_calibrated_by_a_softmax():
    """Labels drawn from the true probabilities; scores are those at a third of the temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (4000, 5))
    truth = softmax(logits, axis=1)
    labels = (truth.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    given = SavedPredictions(LABELS[:5], softmax(3 * logits, axis=1), np.eye(5)[labels], exclusive=True)
    report = calibration_report(given)
    assert report["temperature"] == pytest.approx(3, rel=0.06)
    assert report["calibration"]["temperature"]["ece"] < 0.02 < 0.08 < report["calibration"]["none"]["ece"]
    assert report["sets"]["per photo"]["coverage"] == pytest.approx(0.9, abs=0.03)
    assert report["thresholds"] == {}
    assert "Thresholds" not in render_calibration(report, "title")
    temperature = fitted_temperature(given)
    np.testing.assert_allclose(
        apply_temperature(given.scores, 3.0, exclusive=True), truth, atol=1e-9
    )  # exact but for scores below the smallest float32
    losses = [-np.log(softmax(3 * logits / t, axis=1)[np.arange(4000), labels]).mean() for t in (2.9, temperature, 3.1)]
    assert losses[1] <= min(losses)


def test_a_written_temperature_shows_everywhere(tmp_path):
    """Regression: the page of a run showed the previous thresholds and calibration error."""
    run, taxonomy = tmp_path / "run", tiny_taxonomy()
    given = predictions(2000, temperature=0.4)
    given = SavedPredictions(list(taxonomy.names), given.scores[:, :5], given.targets[:, :5])
    write_bundle(run / "bundle", thresholds=[0.6] * 5)
    ids = [str(row) for row in range(2000)]
    scores = Scores(ids, given.scores.astype(np.float32), given.targets.astype(np.float32), [])
    for split in ("val", "test"):
        write_predictions(run / f"predictions-{split}.parquet", scores, taxonomy.names)
        report = make_report(scores, "multilabel", taxonomy, 0.6, positive_share=0.5)
        write_report(run, f"report-{split}", report, "multilabel", f"toy: {split}")
    (run / "metrics.json").write_text('{"thresholds": 0.6, "seed": 3}')
    result = CliRunner().invoke(app, ["calibrate", str(run), "--write"], catch_exceptions=False)
    assert str(run / "bundle") in result.stderr
    info = load_bundle(run / "bundle").info
    for split in ("val", "test"):
        now = read_evaluation(run, split)
        np.testing.assert_allclose(now.thresholds, info.thresholds)
        np.testing.assert_allclose(now.report["per_class"]["threshold"], info.thresholds)
        moved = apply_temperature(scores.probabilities, info.temperature)
        np.testing.assert_allclose(now.probabilities, moved, atol=1e-6)
        assert reliability_curve(now.probabilities, now.targets).error < 0.02
        predicted = (now.probabilities >= now.thresholds).sum(axis=0)
        np.testing.assert_array_equal(predicted, now.report["per_class"]["predicted"])
        assert (run / f"report-{split}.md").read_text().startswith(f"# toy: {split}\n")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["seed"] == 3
    np.testing.assert_allclose([metrics["thresholds"]] * 5, info.thresholds)


def written_run(run, label="id"):
    """A run with two reports at different thresholds, as `intclip fit` writes for a post's channels."""
    taxonomy = replace(tiny_taxonomy(), exclusive=False)
    given = predictions(500, temperature=0.4)
    names = (label, *taxonomy.names[1:])
    write_bundle(run / "bundle", thresholds=[0.6] * 5)
    scores = Scores([str(row) for row in range(500)], given.scores[:, :5].astype(np.float32), given.targets[:, :5], [])
    for split, level in (("val", 0.6), ("val-image", 0.2)):
        write_predictions(run / f"predictions-{split}.parquet", scores, names)
        report = make_report(scores, "multilabel", taxonomy, level, positive_share=0.5) | {"labels": list(names)}
        write_report(run, f"report-{split}", report, "multilabel", split)
    return scores


def test_every_report_keeps_its_own_thresholds_and_labels(tmp_path):
    """Regression: reports of single channels showed the thresholds of both; a label "id" replaced the photos' ids."""
    scores = written_run(tmp_path / "run")
    write_temperature(tmp_path / "run", 3.0)
    for split, level in (("val", 0.6), ("val-image", 0.2)):
        now = read_evaluation(tmp_path / "run", split)
        assert now.ids == scores.ids
        odds = level / (1 - level)
        np.testing.assert_allclose(now.thresholds, odds ** (1 / 3) / (1 + odds ** (1 / 3)), rtol=1e-9)
        np.testing.assert_allclose(now.report["per_class"]["threshold"], now.thresholds)
        np.testing.assert_array_equal(now.probabilities >= now.thresholds, scores.probabilities >= level)


def test_a_temperature_is_written_everywhere_or_nowhere(tmp_path, monkeypatch):
    """Regression: after a full disk the bundle had a temperature, the reports did not, and a second try was refused."""
    run = tmp_path / "run"
    written_run(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(calibration_report_module, "render", full)
    with pytest.raises(StorageError, match=str(run)):
        write_temperature(run, 3.0)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    write_temperature(run, 3.0)
    assert load_bundle(run / "bundle").info.temperature == 3


@pytest.mark.parametrize("everywhere", [0, 1])
def test_without_positives_or_negatives_nothing_is_fitted(everywhere):
    given = predictions(40)
    with pytest.raises(DatasetError, match="temperature"):
        fitted_temperature(SavedPredictions(given.labels, given.scores, np.full_like(given.targets, everywhere)))
    given.targets[:, 2] = everywhere
    report = calibration_report(given)
    assert report["lacking"] == [LABELS[2]]
    assert LABELS[2] in render_calibration(report, "title")


@pytest.mark.filterwarnings("error")
def test_sets_of_photos_without_a_true_label_have_no_coverage():
    given = predictions(40)
    report = calibration_report(replace(given, targets=0.4 * given.targets))
    assert set(report["sets_over_halves"]["per photo"].values()) == {None}


def test_what_cannot_be_calibrated_is_told(tmp_path):
    for words, message in ((["nowhere"], "nowhere"), ([str(tmp_path)], str(tmp_path))):
        with pytest.raises(DatasetError, match=message):
            CliRunner().invoke(app, ["calibrate", *words], catch_exceptions=False)
    with pytest.raises(DatasetError, match="3 photos"):
        calibration_report(predictions(3))
    with pytest.raises(DatasetError, match="positive_share=0"):
        calibration_report(predictions(8), positive_share=0)
    refused = CliRunner().invoke(app, ["calibrate", str(tmp_path), "--miss-rate", "inf"])
    assert refused.exit_code == 2
    assert "--miss-rate" in refused.output
    assert not list(tmp_path.iterdir())
