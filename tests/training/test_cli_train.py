"""The commands `intclip train`, `evaluate` and `ablate` on a few photos with the embedded backbone."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from intclip.backbones.architecture import Architecture
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.cli.main import app
from intclip.errors import DatasetError, IntclipError, RecipeError, StorageError, TrainingError
from intclip.training.recipe import builtin_recipes

COLOURS = {"red": (200, 40, 40), "blue": (40, 40, 200)}


def intclip(*words: object) -> str:
    """Return the output of a successful command; errors are raised."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with splits and one folder per label."""
    root = tmp_path_factory.mktemp("data") / "colours"
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for label, colour in COLOURS.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 30, (64, 80, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return root


def options(photos: Path) -> list[str]:
    place = ["--data-root", str(photos)]
    quick = ["schedule.epochs=3", "data.limit=null", "train.batch_size=4", "train.device=cpu", "evaluate.bootstrap=20"]
    quick += ["data.name=folder", "data.val=val", "data.test=test"]
    return place + [word for override in quick for word in ("--set", override)]


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "tiny"
    cache = out.parent / "cache"
    text = intclip("train", "tiny", *options(photos), "--out", out, "--set", f"cache.path={cache}")
    assert "linear_probe on lite, colours: epoch" in text
    assert f"intclip predict PHOTO --model {out}" in text
    assert list(cache.rglob("*.npy"))
    return out


def test_training_leaves_a_model_that_predicts_and_evaluates(photos, run, tmp_path):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["splits"]["test"]["headline"]["accuracy"] == 1.0
    text = intclip("evaluate", run, "--data", photos, "--engine", "torch", "--out", tmp_path, "--bootstrap", 20)
    assert "| Accuracy | 100.00 |" in text
    assert json.loads((tmp_path / "report-test.json").read_text())["images"] == 6
    assert (tmp_path / "predictions-test.parquet").exists()


def test_the_suggested_command_finds_weights_of_your_own(photos, tmp_path):
    weights = tmp_path / "mine.safetensors"
    clip = random_clip(Architecture(16, 64, (1, 1, 1, 1), 8, None, text_width=64, text_layers=1))
    save_file({key: value.contiguous() for key, value in openai_state_dict(clip).items()}, weights)
    words = [*options(photos), "--set", "schedule.epochs=1", "--set", "backbone.name=CLIP", "--set", "cache.path=off"]
    text = intclip("train", "tiny", *words, "--set", f"backbone.checkpoint={weights}", "--out", tmp_path / "run")
    command = text.split("try: intclip ")[1].replace("PHOTO", str(photos / "test/red/0.jpg")).split()
    assert "0.jpg" in intclip(*command, "--engine", "torch")


def test_evaluation_scores_the_split_that_the_training_kept(photos, tmp_path):
    """If the data has no split named test, the model's recipe determines the split."""
    words = [*options(photos), "--set", "data.val=null", "--set", "data.test=val", "--set", "schedule.epochs=1"]
    intclip("train", "tiny", *words, "--out", tmp_path / "run", "--set", "cache.path=off")
    ours = ["evaluate", tmp_path / "run", "--data-root", photos, "--engine", "torch", "--bootstrap", 0]
    assert ", val\n" in intclip(*ours)
    assert ", train\n" in intclip(*ours, "--split", "train")
    with pytest.raises(DatasetError, match="'gone'"):
        intclip(*ours, "--split", "gone")
    elsewhere = ["evaluate", tmp_path / "run", "--data", photos, "--engine", "torch", "--bootstrap", 0]
    assert ", test\n" in intclip(*elsewhere)  # a split of the recipe's data does not apply to other data


def test_evaluation_tunes_thresholds_on_another_split_only(photos, run):
    words = ["evaluate", run, "--data", photos, "--engine", "torch", "--bootstrap", 0, "--json"]
    assert json.loads(intclip(*words, "--split", "val"))["accuracy"] == 1.0
    with pytest.raises(DatasetError, match=r"thresholds cannot be tuned on the scored split 'val'"):
        intclip(*words, "--split", "val", "--thresholds", "val")
    with pytest.raises(DatasetError, match=r"'dev'.* train, val, test"):
        intclip(*words, "--split", "dev")
    with pytest.raises(RecipeError, match=r"1\.5"):
        intclip(*words, "--thresholds", "1.5")
    with pytest.raises(DatasetError, match="positive_share=0"):
        intclip(*words, "--positive-share", "0")


def test_options_that_would_do_nothing_are_refused(photos, run):
    words = ["evaluate", run, "--data", photos, "--engine", "torch", "--bootstrap", 0]
    for more in ([], ["--thresholds", "0.5"]):
        with pytest.raises(RecipeError, match="--per-class"):
            intclip(*words, "--per-class", *more)
    with pytest.raises(IntclipError, match=str(run)):
        intclip(*words, "--taxonomy", "intentonomy")


def test_the_data_are_read_with_options(photos, run, tmp_path):
    rows = [f"{photos}/test/red/0.jpg,red,test", f"{photos}/test/blue/gone.jpg,blue,test"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    words = ["evaluate", run, "--data", tmp_path / "t.csv", "--engine", "torch", "--bootstrap", 0, "--json"]
    with pytest.raises(DatasetError, match=r"gone\.jpg.*--set missing=skip`"):
        intclip(*words)
    assert json.loads(intclip(*words, "--set", "missing=skip"))["images"] == 1
    with pytest.raises(DatasetError, match="--set root"):
        intclip(*words, "--set", "root=here")


def test_photos_without_a_known_label_are_not_scored(photos, run, tmp_path):
    """They are used neither for scores nor for tuning thresholds."""
    rows = [f"{photos}/test/red/0.jpg,,test", f"{photos}/val/red/0.jpg,red,val", f"{photos}/val/blue/0.jpg,blue,val"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows]) + "\n")
    words = ["evaluate", run, "--data", tmp_path / "t.csv", "--engine", "torch", "--bootstrap", 0]
    for more in ([], ["--split", "val", "--thresholds", "test"]):
        with pytest.raises(DatasetError, match=r"1 samples of t, test,.* label"):
            intclip(*words, *more)


def test_labels_that_exclude_each_other_do_so_without_training(photos, tmp_path):
    """A column `label` with one label per row makes the task single-label, for any predictor."""
    rows = [f"{photos}/test/{label}/{number}.jpg,{label}" for label in COLOURS for number in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    words = ["evaluate", "lite", "--data", tmp_path / "t.csv", "--split", "train", "--engine", "torch", "--json"]
    report = json.loads(intclip(*words))
    assert report["images"] == 6
    assert {"accuracy", "confusion"} < report.keys()
    (tmp_path / "t.csv").write_text("\n".join(["path,labels", *rows]) + "\n")
    assert "samples_f1" in json.loads(intclip(*words))


def test_a_label_of_the_model_may_hold_for_no_photo(photos, run, tmp_path):
    """A user's files define labels by their content; a subset may lack a label of the model."""
    (tmp_path / "t.csv").write_text(f"path,label\n{photos}/test/red/0.jpg,red\n{photos}/test/red/1.jpg,red\n")
    words = ["--split", "train", "--engine", "torch", "--bootstrap", 0, "--json"]
    report = json.loads(intclip("evaluate", run, "--data", tmp_path / "t.csv", *words))
    assert dict(zip(report["labels"], report["per_class"]["support"], strict=True)) == {"red": 2, "blue": 0}
    assert report["accuracy"] == 1
    (tmp_path / "red").symlink_to(photos / "test" / "red")
    report = json.loads(intclip("evaluate", run, "--data", "folder", "--data-root", tmp_path, *words))
    assert (report["images"], report["accuracy"]) == (3, 1)


def test_a_model_of_other_labels_is_refused(run, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("path,labels\na.jpg,cat\n")
    with pytest.raises(DatasetError, match="'cat'"):
        intclip("evaluate", run, "--data", tmp_path / "t.csv", "--split", "train", "--engine", "torch")


def test_a_second_start_needs_resume(photos, run):
    with pytest.raises(StorageError, match=str(run)):
        intclip("train", "tiny", *options(photos), "--out", run, "--set", "cache.path=off")
    metrics = json.loads(intclip("train", "tiny", *options(photos), "--out", run, "--resume", "--json"))
    assert metrics == json.loads((run / "metrics.json").read_text())
    with pytest.raises(TrainingError, match=r"schedule.*epochs.*3.*4"):
        intclip("train", "tiny", *options(photos), "--set", "schedule.epochs=4", "--out", run, "--resume")


def test_study_runs_from_the_command_line_and_is_not_run_twice(photos, run, tmp_path):
    words = ["ablate", "table6", "--recipe", "proxy-lite", *options(photos), "--set", "schedule.epochs=2"]
    words += ["--set", "augment=null", "--set", "backbone.engine=torch", "--set", "cache.path=off"]
    words += ["--seeds", "0", "--jobs", 1, "--row", "IntCLIP", "--out", tmp_path / "a"]
    text = intclip(*words)
    assert "| IntCLIP | – / " in text
    assert "| backbone | CLIP RN101 | lite |" in text
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"cells", "table6.csv", "table6.md", "table6.png"}
    log = tmp_path / "a" / "cells" / "intclip" / "seed-0" / "log.jsonl"
    before = log.stat().st_mtime_ns
    rows = json.loads(intclip(*words, "--json"))
    assert rows[0]["row"] == "IntCLIP"
    assert len(rows[0]["ours"]["accuracy"]) == 1
    assert log.stat().st_mtime_ns == before


def test_help_and_lists_teach():
    for command in ("train", "evaluate", "ablate"):
        text = CliRunner().invoke(app, [command, "--help"]).stdout
        assert "Examples:" in text
        assert f"intclip {command} " in text
    listed = intclip("train", "--list")
    assert all(line.split()[0] in builtin_recipes() for line in listed.splitlines())
    assert "the validation split; the test split is scored once\n" in listed  # over two lines
    assert "table4: Designs of the image encoder (Table 4)" in intclip("ablate", "--show")
    assert "sentence_form" in intclip("train", "clean", "--show")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "asl_resnet, best, "),
        (["train", "claen"], "no recipe 'claen'; did you mean 'clean'?"),
        (["train", "tiny", "--set", "optim.lrr=1"], "unknown key 'optim.lrr'; did you mean 'optim.lr'?"),
        (["train", "tiny", "--data-root", "/nowhere/at/all"], "no such file or folder"),
        (["evaluate", "no-such-model"], "no model 'no-such-model'"),
        (["ablate"], "name a study: methods"),
        (["ablate", "table9", "--show"], "no study 'table9'; did you mean"),
        (["evaluate", "lite"], "choose one with --data"),
    ],
)
def test_bad_input_is_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(IntclipError) as error:
        intclip(*words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_bad_seeds_are_refused(photos, tmp_path):
    for seeds in ("0,one", "1,1", "-1"):
        with pytest.raises(RecipeError, match="--seeds"):
            intclip("ablate", "table6", *options(photos), "--seeds", seeds, "--out", tmp_path)
