"""Every command on output of `intclip fit`: a table of command × channels."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from intclip.cli.main import app
from intclip.errors import IntclipError
from intclip.evaluation.saved import read_evaluation, same_photos
from intclip.reports.evaluation_report import page_content
from labelled_posts import write_posts
from tiny_models import tiny_known

CHANNELS = {"photos": ["image"], "words": ["text"], "both": ["image", "text"]}
# Expected output by command or, if the model does not support the command's input, a part of the error.
COMMANDS = {
    "predict a photo": (["predict", "{p}/0.png", "-m", "{m}", "--json"], {"words": "no text"}),
    "predict words": (["predict", "--text", "a blue sea", "-m", "{m}", "--json"], {"photos": "uses only photos"}),
    "predict a table": (["predict", "{p}/posts.csv", "-m", "{m}", "--json"], {}),
    "explain a photo": (
        ["explain", "{p}/0.png", "-m", "{m}", "--label", "sea", "--out", "{o}/e.png"],
        {"words": "only text"},
    ),
    "explain words": (
        ["explain", "--text", "a blue sea", "-m", "{m}", "--label", "sea"],
        {"photos": "uses only photos"},
    ),
    "evaluate": (["evaluate", "{m}", "--data", "{p}/posts.csv", "--split", "train", "--out", "{o}/ev"], {}),
    "calibrate": (["calibrate", "{m}", "--out", "{o}/cal"], {}),
    "calibrate --write": (["calibrate", "{m}", "--write", "--out", "{o}/cal2"], {}),
    "export onnx": (["export", "{m}", "--out", "{o}/m.onnx"], {"words": "only text"}),
    "export openvino": (["export", "{m}", "--out", "{o}/m.xml"], {"words": "only text"}),
    "batch": (["batch", "{p}", "--model", "{m}", "--out", "{o}/b"], {"words": "only text"}),
    "index": (["index", "{p}", "--model", "{m}", "--out", "{o}/i"], {"words": "only text"}),
    "report": (["report", "{p}/posts.csv", "-m", "{m}", "--out", "{o}/r.html"], {}),
    "report --evaluation": (["report", "{m}", "--evaluation", "--split", "val", "--out", "{o}/re.html"], {}),
}


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with tiny_known():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Posts, and a model for each of `CHANNELS`."""
    folder = tmp_path_factory.mktemp("commands")
    posts = write_posts(folder, 24)
    for name, channels in CHANNELS.items():
        words = ["fit", posts, "--out", folder / "models" / name, "--folds", 2, "--backbone", "tiny"]
        words += ["--text-encoder", "backbone", *(word for channel in channels for word in ("--channel", channel))]
        run(*words)
    return folder


def run(*words):
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False, standalone_mode=False)
    return result.stdout


@pytest.mark.parametrize("model", CHANNELS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command(home: Path, tmp_path: Path, command: str, model: str) -> None:
    words, refusals = COMMANDS[command]
    places = {"p": home, "m": home / "models" / model, "o": tmp_path}
    words = [word.format(**places) for word in words]
    if model in refusals:
        with pytest.raises(IntclipError, match=refusals[model]) as refusal:
            run(*words)
        assert "\n" not in str(refusal.value)
        assert not list(tmp_path.rglob("*.*"))
        return
    out = run(*words)
    if command.startswith("predict"):
        rows = json.loads(out)
        assert len(rows) == (24 if command == "predict a table" else 1)
        assert all(0 <= score <= 1 for row in rows for score in row["scores"].values())
    elif command != "explain words":
        assert any(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())


def test_an_exported_model_predicts_as_the_model_does_of_photos(home: Path, tmp_path: Path) -> None:
    import intclip

    model = intclip.load(home / "models" / "both")
    expected = model.predict(home / "0.png")[0]
    for suffix, engine in (("onnx", "onnx"), ("xml", "openvino")):
        found = intclip.load(model.export(tmp_path / f"m.{suffix}", engine)).predict(home / "0.png")[0]
        assert found.scores == pytest.approx(expected.scores, abs=1e-4)
        assert found.labels == expected.labels
        assert list(found.thresholds) == list(expected.thresholds)


def test_a_model_card_of_each(home: Path) -> None:
    from intclip.inference.bundle import load_bundle
    from intclip.inference.loading import bundle_path
    from intclip.inference.push import model_card

    for name in CHANNELS:
        card = model_card(load_bundle(bundle_path(str(home / "models" / name))), "me/mine")
        assert "post_heads" in card
        assert "Macro F1" in card


def test_the_page_of_an_evaluation_has_the_figures_of_its_report(home: Path, tmp_path: Path) -> None:
    """Regression: each fold has its own thresholds; the page used their means, before and after `calibrate --write`."""
    run(
        "fit",
        home / "posts.csv",
        "--out",
        tmp_path,
        "--overwrite",
        "--folds",
        2,
        "--backbone",
        "tiny",
        "--text-encoder",
        "backbone",
    )
    for calibrated in (False, True):
        if calibrated:
            run("calibrate", tmp_path, "--write")
        for split in ("val", "val-image", "val-text"):
            found = read_evaluation(tmp_path, split)
            assert found.thresholds.shape == found.probabilities.shape
            predicted = (found.probabilities >= found.thresholds).sum(axis=0)
            assert predicted.tolist() == found.report["per_class"]["predicted"]
            tiles = page_content(found, None, lambda _: None)["tiles"]
            for tile in tiles:
                assert tile["value"] == pytest.approx(found.report[tile["key"]])
    np.testing.assert_array_equal(same_photos(found, found)[1].thresholds, found.thresholds)


def test_a_table_that_does_not_fit_the_model_is_refused_by_row(home: Path, tmp_path: Path) -> None:
    """Regression: a model of one label scored posts with several, and counted their first in alphabetical order."""
    header, *rows = (home / "posts.csv").read_text().splitlines()
    table, only = home / "one.csv", home / "photos.csv"
    table.write_text("\n".join([header, *(row.replace("sea;fire", "sea") for row in rows)]).replace("labels", "label"))
    run("fit", table, "--out", tmp_path / "one", "--folds", 0, "--backbone", "tiny", "--text-encoder", "backbone")
    with pytest.raises(IntclipError, match=r"posts\.csv, row 2: labels 'fire', 'sea'"):
        run("evaluate", tmp_path / "one", "--data", home / "posts.csv", "--split", "train")
    only.write_text("image,labels\n" + "\n".join(f"{row.split(',')[0]},{row.split(',')[2]}" for row in rows))
    with pytest.raises(IntclipError, match=r"24 posts.*0\.png: no text"):
        run("evaluate", home / "models" / "words", "--data", only, "--split", "train")
