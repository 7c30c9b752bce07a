"""The command line: exit codes, printed output, and files that are never half-written."""

import csv
import json
import logging
import os
import re
import shutil

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from fakes import tiny_taxonomy
from tiny_models import reference_probabilities

NAMES = list(tiny_taxonomy().names)


@pytest.fixture
def mixed(photos, tmp_path):
    """Two good photos, a text file with a photo's name, and another good photo."""
    text = tmp_path / "text.jpg"
    text.write_text("hello")
    return [photos[0], photos[1], text, photos[2]]


def test_table(cli, exported, photos):
    code, out, err = cli("predict", *photos[:2], "-m", exported, "--top", 3)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 2 * (1 + 3)
    assert lines[0] == str(photos[0])
    expected = reference_probabilities(photos[:1])[0]
    best = int(expected.argmax())
    assert lines[1].split()[1] == f"{expected[best]:.3f}"
    assert lines[1].endswith(NAMES[best])
    assert lines[1].lstrip().startswith("●" if expected[best] >= 0.52 else "○")


def test_json_is_one_array_with_the_reference_s_numbers(cli, exported, photos):
    code, out, _ = cli("predict", photos[0].parent, "-m", exported, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["source"] for row in rows] == [str(path) for path in photos]
    scores = [[row["scores"][name] for name in NAMES] for row in rows]
    np.testing.assert_allclose(scores, reference_probabilities(photos), atol=1e-5, rtol=0)
    assert all(row["error"] is None for row in rows)


def test_csv_and_parquet_say_the_same(cli, exported, photos, tmp_path):
    table, frame = tmp_path / "out.csv", tmp_path / "out.parquet"
    code, out, _ = cli("predict", *photos, "-m", exported, "--csv", table, "--parquet", frame)
    assert (code, out) == (0, "")
    with table.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = pyarrow.parquet.read_table(frame).to_pydict()
    assert list(rows[0]) == list(columns) == ["source", "error", "labels", *NAMES]
    assert [row["labels"] for row in rows] == ["; ".join(labels) for labels in columns["labels"]]
    expected = reference_probabilities(photos)
    for k, name in enumerate(NAMES):
        np.testing.assert_allclose(columns[name], expected[:, k], atol=1e-5)
        np.testing.assert_allclose([float(row[name]) for row in rows], expected[:, k], atol=2e-5)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_words_of_a_table_are_left_out_by_a_model_that_reads_none(cli, exported, photos, tmp_path):
    table = tmp_path / "posts.csv"
    table.write_text(f"image,label,text\n{photos[0]},x,at the sea\n{photos[1]},y,\n")
    code, out, err = cli("predict", table, "-m", exported, "--json")
    assert (code, len(err.splitlines())) == (0, 1)
    assert err.endswith("uses only photos: ignoring the text in the table\n")
    plain = cli("predict", photos[0], photos[1], "-m", exported, "--json")[1]
    assert json.loads(out) == json.loads(plain)
    code, out, err = cli("report", table, "-m", exported, "--out", tmp_path / "page.html")
    assert (code, "ignoring the text" in err, ": 2 photos" in out) == (0, True, True)
    table.write_text(f"image,text\n{photos[0]},at the sea\n,words alone\n")
    assert cli("predict", table, "-m", exported)[0] == 2, "a post without a photo cannot be predicted"
    assert "uses only photos" in cli("predict", photos[0], "--text", "words", "-m", exported)[2]


def test_a_name_that_is_no_utf_8_stands_in_every_table(cli, exported, photos, tmp_path):
    folder, table, frame, page = (tmp_path / name for name in ("odd", "out.csv", "out.parquet", "out.html"))
    folder.mkdir()
    shutil.copy(photos[0], folder / os.fsdecode(b"a\xff.png"))
    code, out, err = cli("predict", folder, "-m", exported, "--json", "--csv", table, "--parquet", frame)
    assert (code, err) == (0, "")
    source = f"{folder}/a\\udcff.png"
    assert json.loads(out)[0]["source"] == source
    assert [row["source"] for row in csv.DictReader(table.open(encoding="utf-8"))] == [source]
    assert pyarrow.parquet.read_table(frame)["source"].to_pylist() == [source]
    assert cli("report", folder, "-m", exported, "--out", page)[0] == 0
    assert "a\\\\udcff.png" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="names have no such characters there")
def test_a_name_cannot_steer_the_terminal(cli, exported, bundle_path, photos, tmp_path):
    shutil.copy(photos[0], tmp_path / "a\x1b]0;title\x07\n\u202e.png")
    (tmp_path / "b\x1b[2J\n.png").write_text("hello")
    code, out, err = cli("predict", tmp_path, "-m", exported)
    assert code == 2
    assert out.splitlines()[0] == f"{tmp_path}/a\\x1b]0;title\\x07\\n\\u202e.png"
    assert err.splitlines()[1].startswith(f"  {tmp_path}/b\\x1b[2J\\n.png is not a supported image")
    _, _, err = cli("predict", tmp_path / "b\x1b[2J\n.png", "-m", exported)
    assert err.startswith(f"intclip: {tmp_path}/b\\x1b[2J .png is not a supported image")
    index = tmp_path / "photos.index"
    assert cli("index", tmp_path, "--out", index, "-m", bundle_path)[0] == 0
    _, out, _ = cli("search", index, "--intent", NAMES[0])
    assert "/a\\x1b]0;title\\x07\\n\\u202e.png" in out


def test_level_and_threshold(cli, exported, photos):
    _, out, _ = cli("predict", photos[0], "-m", exported, "--json", "--level", "group", "--threshold", 0)
    (row,) = json.loads(out)
    expected = reference_probabilities(photos[:1])[0]
    assert row["scores"] == pytest.approx(
        {"group 0": expected[[0, 2, 4]].max(), "group 1": expected[[1, 3]].max()}, abs=1e-5
    )
    assert row["labels"] == NAMES
    _, out, _ = cli("predict", photos[0], "-m", exported, "--level", "group", "--threshold", 1)
    assert out.count("group") == 2
    assert "●" not in out


def test_bad_photos_are_listed_and_the_others_done(cli, exported, mixed, tmp_path):
    table = tmp_path / "out.csv"
    code, out, err = cli("predict", *mixed, "-m", exported, "--json", "--csv", table)
    assert code == 2
    assert err.splitlines()[0] == "could not be read:"
    assert "text.jpg" in err.splitlines()[1]
    assert err.splitlines()[-1] == "intclip: 1 of 4 photos could not be read; the others are done"
    rows = json.loads(out)
    assert [row["error"] is None for row in rows] == [True, True, False, True]
    assert len(table.read_text().splitlines()) == 5


def test_one_bad_photo_alone_is_one_line(cli, exported, mixed):
    code, out, err = cli("predict", mixed[2], "-m", exported)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"intclip: {mixed[2]} is not a supported image")


def test_many_bad_photos_are_counted_not_all_listed(cli, exported, tmp_path):
    for i in range(25):
        (tmp_path / f"{i:02d}.jpg").write_text("x")
    code, _, err = cli("predict", tmp_path, "-m", exported)
    assert code == 2
    assert len(err.splitlines()) == 1 + 20 + 1 + 1
    assert "and 5 more" in err
    assert err.endswith("intclip: none of the 25 photos could be read; check the first one listed above\n")


def test_a_model_that_is_converted_says_so_once(cli, bundle_path, photos, monkeypatch, tmp_path):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path))
    words = ("predict", photos[0], "-m", bundle_path, "--engine", "onnx", "--json")
    code, out, err = cli(*words)
    assert (code, len(json.loads(out))) == (0, 1)
    assert err.count("\n") == 1
    assert str(tmp_path) in err
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    assert cli(*words) == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "gone.jpg"], "gone.jpg"),
        (["predict", "EMPTY"], "no photos in folder"),
        (["predict", "PHOTO", "-m", "gone"], "no model 'gone'"),
        (["predict", "PHOTO", "-m", "gone.onnx"], "no such exported model"),
        (["predict", "PHOTO", "-m", "MODEL", "--level", "family"], "family"),
        (["predict", "PHOTO", "-m", "MODEL", "--taxonomy", "emotions"], "has its own labels"),
        (["predict", "PHOTO", "-m", "MODEL", "--engine", "torch"], "engine"),
        (["predict", "PHOTO", "--taxonomy", "gone.yaml"], "gone.yaml"),
        (["predict", "PHOTO", "--sentences", "100"], "100"),
        (["predict", "PHOTO", "--threshold", "2"], "threshold"),
        (["predict", "PHOTO", "--precision", "f8"], "precision"),
        (["predict", "PHOTO", "-m", "MODEL", "--csv", "/proc/nowhere/x.csv"], "cannot write"),
        (["predict", "PHOTO", "-m", "MODEL", "--parquet", "/proc/nowhere/x.parquet"], "cannot write"),
        (["predict"], "photos"),
        (["explain", "gone.jpg", "--label", "x"], "gone.jpg"),
        (["explain", "PHOTO", "-m", "MODEL", "--label", "klass 1"], "did you mean 'class 1'"),
        (["explain", "PHOTO", "-m", "MODEL", "--out", "x.gif"], "x.gif"),
        (["export", "MODEL", "--out", "x.bin"], "x.bin"),
        (["export", "MODEL", "--out", "x.xml", "--format", "onnx"], "x.xml"),
        (["export", "MODEL", "--out", "x.onnx"], "exported graph"),
        (["export", "MODEL", "--out", "x.xml", "--int8"], "--calibrate"),
        (["export", "MODEL", "--out", "x.xml", "--calibrate", "EMPTY"], "--calibrate needs --int8"),
        (["export", "MODEL", "--out", "x"], "name the file *.onnx or *.xml\n"),
        (["export", "gone", "--out", "x.onnx"], "no model 'gone'"),
        (["export", "MODEL"], "--out"),
        (["predikt", "PHOTO"], "predikt"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(cli, exported, photos, tmp_path, monkeypatch, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    places = {"PHOTO": str(photos[0]), "MODEL": str(exported), "EMPTY": str(tmp_path / "empty")}
    code, out, err = cli(*(places.get(argument, argument) for argument in arguments))
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith("intclip: ")
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["empty"], "nothing half-written"


def test_for_a_label_too_long_for_the_model_the_option_for_other_sentences_is_named(cli, photos, tmp_path):
    file, long = tmp_path / "long.yaml", " ".join(["floccinaucinihilipilification"] * 30)
    classes = [{"name": "joy", "sentence": long}, {"name": "awe", "sentence": "An old forest in fog"}]
    file.write_text(json.dumps({"name": "long", "level": "label", "classes": classes}))
    code, out, err = cli("predict", photos[0], "--taxonomy", file)
    assert (code, out) == (2, "")
    assert re.search(r"'floccinauci.*\d+ tokens.* 256.*--sentences", err)
    assert cli("predict", photos[0], "--taxonomy", file, "--sentences", "fine")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "a.png", "--csv", "a.png"],
        ["predict", ".", "--parquet", "./a.png"],
        ["predict", "posts.csv", "--csv", "posts.csv"],
        ["predict", "a.png", "--csv", "t", "--parquet", "t"],
        ["explain", "a.png", "--out", "a.png"],
        ["report", "a.png", "--out", "a.png"],
        ["report", "posts.csv", "--out", "posts.csv"],
    ],
)
def test_no_result_is_written_over_what_it_is_made_from(cli, exported, photos, tmp_path, monkeypatch, arguments):
    Image.open(photos[0]).save(tmp_path / "a.png")
    (tmp_path / "posts.csv").write_text("image\na.png\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    code, out, err = cli(*arguments, "-m", exported)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "is an input; choose another output file" in err or "name the same file" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_explain_writes_an_overlay(cli, exported, photos, tmp_path):
    target = tmp_path / "overlay.png"
    code, out, err = cli("explain", photos[3], "-m", exported, "--label", "CLASS 2", "--out", target, "--plain")
    assert (code, err) == (0, "")
    assert out.startswith("class 2: ")
    with Image.open(target) as drawn, Image.open(photos[3]) as photo:
        assert drawn.size == photo.size
        # Only the area outside the middle square is dimmed.
        before, after = np.asarray(photo.convert("RGB"), float), np.asarray(drawn.convert("RGB"), float)
    assert after[:, :15].mean() < 0.6 * before[:, :15].mean()
    assert not np.array_equal(after[:, 40:160], before[:, 40:160])


def test_explain_takes_the_most_probable_label_by_default(cli, exported, photos, tmp_path):
    code, out, _ = cli("explain", photos[0], "-m", exported, "--out", tmp_path / "o.jpg", "--json", "--branch", "sight")
    found = json.loads(out)
    assert code == 0
    assert found["label"] == NAMES[int(reference_probabilities(photos[:1])[0].argmax())]
    assert sorted(found["branches"]) == ["fused", "semantic", "sight"]
    assert (tmp_path / "o.jpg").is_file()


def test_export_with_int8(cli, bundle_path, photos, tmp_path):
    target = tmp_path / "int8.xml"
    code, out, err = cli("export", bundle_path, "--out", target, "--int8", "--calibrate", photos[0].parent)
    assert (code, err) == (0, "")
    assert "int8, 5 labels" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int8.bin", "int8.xml"]
    code, out, _ = cli("predict", *photos, "-m", target, "--json")
    scores = [[row["scores"][name] for name in NAMES] for row in json.loads(out)]
    assert np.abs(scores - reference_probabilities(photos)).max() < 0.1


def test_interrupted_work_leaves_no_table(cli, exported, photos, tmp_path, monkeypatch):
    """Ctrl-C in the middle: exit code 130 and no file."""
    from intclip.inference.predictor import Predictor

    def interrupted(self, *arguments, **options):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Predictor, "predict_iter", interrupted)
    code, _, err = cli("predict", *photos, "-m", exported, "--csv", tmp_path / "out.csv")
    assert code == 130
    assert err == "intclip: interrupted\n"
    assert list(tmp_path.iterdir()) == []
