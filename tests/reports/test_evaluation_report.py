"""The page of an evaluation: its figures equal the report's, and it is self-contained."""

import html
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from intclip.cli.main import main
from intclip.errors import DatasetError, StorageError
from intclip.evaluation.saved import read_evaluation, same_photos
from intclip.metrics import multilabel_report
from intclip.reports.evaluation_report import PHOTOS, page_content, points, render
from scored_photos import COUNT
from scored_photos import write_evaluation as write

NASTY = "a <script>alert(1)</script> & more"


def text_of(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


def test_the_page_is_whole_and_asks_nobody(tmp_path):
    names = [NASTY, *(f"class {k}" for k in range(1, 5))]
    page = render(read_evaluation(write(tmp_path / "a", names=names)))
    outside = [link for link in re.findall(r'(?:src|href)="([^"]*)"', page) if not link.startswith("data:")]
    assert outside == []
    assert "http" not in page
    assert NASTY not in page
    assert html.escape(NASTY) in page or html.escape(NASTY).replace("&#39;", "'") in page
    assert page.count("<svg") == page.count("</svg") == 2 + 5 + 3
    assert len(page) < 120_000


def test_its_figures_are_the_report_s(tmp_path):
    folder = write(tmp_path / "a")
    report = json.loads((folder / "report-test.json").read_text())
    page = render(read_evaluation(folder))
    text = " ".join(text_of(page).split())
    assert "40 photos of test, and 1 that could not be read; 5 labels" in text
    for key in ("macro_f1", "micro_f1", "samples_f1", "mAP"):
        low, high = report["intervals"][key]
        assert f"{100 * report[key]:.1f} {100 * low:.1f} – {100 * high:.1f}" in text
    rows = re.findall(r'<th scope="row">(.*?)</th>(.*?)</tr>', page, re.DOTALL)
    assert [name for name, _ in rows] == report["labels"]
    for k, (_, cells) in enumerate(rows):
        values = [float(value) for value in re.findall(r'data-value="([^"]*)"', cells)]
        keys = ("AP", "f1", "precision", "recall", "support", "predicted")
        assert values == pytest.approx([report["per_class"][key][k] for key in keys])


def test_photos_and_how_they_went(tmp_path):
    evaluation = read_evaluation(write(tmp_path / "a"))
    picture = Image.new("RGB", (400, 300), (200, 30, 30))
    asked = []

    def find(name):
        asked.append(name)
        return None if name == asked[0] else picture

    page = render(evaluation, find_photo=find)
    assert len(asked) == len(set(asked)) <= 2 * PHOTOS, "each photo is read once"
    assert page.count("data:image/jpeg") == page.count("<img ")
    assert asked[0] in page, "a photo that is not there is named"
    for sign in ("hit", "missed", "wrong"):
        assert f'class="tag {sign}"' in page


def test_two_models_on_the_photos_they_share(tmp_path):
    better = read_evaluation(write(tmp_path / "good", quality=0.6))
    ids = [f"photo {n}" for n in range(COUNT - 5)]
    worse = read_evaluation(write(tmp_path / "bad", seed=1, quality=0.1, ids=ids))
    first, second = same_photos(better, worse)
    assert first.ids == second.ids == ids
    page = render(better, against=worse)
    text = " ".join(text_of(page).split())
    assert "good against bad" in text
    assert "35 photos of test" in text
    assert "Where good is better than bad" in text
    assert ", clear)" in text
    assert page.count(' dashed"') >= 3 + 1 + 5


def test_two_models_are_held_to_one_truth(tmp_path):
    """If the other evaluation used a different share of votes, its figures are recomputed with ours."""
    ours = read_evaluation(write(tmp_path / "ours", votes=3, positive_share=0.3))
    theirs = read_evaluation(write(tmp_path / "theirs", seed=1, votes=3, positive_share=0.6))
    by_ours = multilabel_report(theirs.probabilities, ours.targets, thresholds=0.5, positive_share=0.3)
    assert by_ours["macro_f1"] != pytest.approx(theirs.report["macro_f1"], abs=0.01)
    macro = page_content(ours, theirs, lambda _: None)["tiles"][0]
    assert macro["other"] == pytest.approx(by_ours["macro_f1"])
    assert macro["value"] - macro["other"] == pytest.approx(macro["difference"])


def test_comparing_what_cannot_be_compared(tmp_path):
    first = read_evaluation(write(tmp_path / "a"))
    with pytest.raises(DatasetError, match=r"^a and b .*photo"):
        same_photos(first, read_evaluation(write(tmp_path / "b", ids=[f"other {n}" for n in range(COUNT)])))
    renamed = read_evaluation(write(tmp_path / "c", names=list("vwxyz")))
    with pytest.raises(DatasetError, match=r"^a and c .*labels"):
        same_photos(first, renamed)
    single = read_evaluation(write(tmp_path / "d", task="singlelabel"))
    for pair in ((first, single), (single, first)):
        with pytest.raises(DatasetError, match=r"d predicts one label per photo, a any number"):
            same_photos(*pair)


def test_one_label_a_photo(tmp_path):
    page = render(read_evaluation(write(tmp_path / "a", task="singlelabel")))
    text = text_of(page)
    assert "Accuracy" in text
    assert "The most probable label is the prediction." in text
    assert "F1 by threshold" not in text
    assert "occur together" not in text


def test_points_leave_out_what_is_not_finite():
    assert points([0, 0.5, 1], [1, np.nan, 0.25]) == "0,0 100,75"


def test_what_is_missing_or_damaged_is_one_line(tmp_path):
    with pytest.raises(StorageError, match="intclip evaluate MODEL --out"):
        read_evaluation(tmp_path)
    folder = write(tmp_path / "a")
    with pytest.raises(StorageError, match="available: test"):
        read_evaluation(folder, "val")
    (folder / "predictions-test.parquet").write_bytes(b"noise")
    with pytest.raises(StorageError, match="damaged") as caught:
        read_evaluation(folder)
    assert "\n" not in str(caught.value)


def test_the_command(tmp_path, capsys, monkeypatch):
    run, out = write(tmp_path / "run"), tmp_path / "page.html"

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["intclip", "report", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        return leaving.value.code, captured.out, captured.err

    code, told, err = command(run, "--evaluation", "--out", out)
    assert code == 0
    assert told.startswith(f"{out}: 40 photos of test")
    assert "--data-root" in err, "it says how the photos come into the page"
    assert out.read_text().startswith("<!doctype")
    twins = [write(tmp_path / name / "seed-0", seed=number) for number, name in enumerate(("full", "less"))]
    assert command(twins[0], "--evaluation", "--against", twins[1], "--out", out)[0] == 0
    assert "Where full/seed-0 is better than less/seed-0" in out.read_text()
    for other, name in ((run, "predictions-test.parquet"), (twins[0], "report-test.json")):
        before = (other / name).read_bytes()
        code, _, err = command(run, "--evaluation", "--against", twins[0], "--out", other / name)
        assert (code, "is an input" in err) == (2, True)
        assert (other / name).read_bytes() == before, "no page is written over what it is made from"
    code, _, err = command(run, "--evaluation", "--split", "val", "--out", tmp_path / "no.html")
    assert code == 2
    assert "available: test" in err
    code, _, err = command(run, "--against", run, "--out", tmp_path / "no.html")
    assert code == 2
    assert "--evaluation" in err
    assert not (tmp_path / "no.html").exists()
