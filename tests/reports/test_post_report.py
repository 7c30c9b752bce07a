"""Posts in the HTML report: content, and escaping of posts' text."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import intclip
from fakes import tiny_taxonomy
from intclip.data import load_dataset
from intclip.errors import IntclipError
from intclip.methods.post_heads.model import PostHeadsOptions
from intclip.reports.report import write_folder_report
from intclip.training.fitting import fit_dataset, write_fitted

WORDS = ("joy in nature near water", "old books with friends")
NASTY = "joy </script><script>alert(1)</script> nature"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        colour = [(30, 60, 200), (200, 60, 30)][i % 2]
        photo = (rng.normal(scale=15, size=(48, 48, 3)) + colour).clip(0, 255).astype(np.uint8)
        Image.fromarray(photo).save(folder / f"{i}.png")
        rows.append({"image": f"{i}.png", "text": f"{WORDS[i % 2]} {i}", "labels": [f"class {i % 2}"]})
    (folder / "posts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_dataset(folder / "posts.jsonl", taxonomy=tiny_taxonomy(2))
    options = PostHeadsOptions(channels=("image", "text"), head="ridge")
    write_fitted(fit_dataset(dataset, options, folds=0), folder / "m")
    return intclip.load(folder / "m"), folder


def page_data(file):
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1])


def test_a_post_is_shown_with_its_words_their_weights_and_the_conflict(model, tmp_path):
    predictor, folder = model
    photo, file = folder / "0.png", tmp_path / "r.html"
    failures = write_folder_report(
        [photo, None, photo, "gone.png"], predictor, file, texts=[NASTY, WORDS[1], None, "x"]
    )
    assert len(failures) == 1
    assert "gone.png" in str(failures[0])
    html = file.read_text()
    assert "<script>alert" not in html
    data = page_data(file)
    both, words, alone = data["photos"]
    assert data["branches"] == ["fused"]
    assert both["text"] == NASTY.split()
    assert words["image"] == ""
    assert "conflict" not in words
    assert "text" not in alone
    assert 0 <= both["conflict"] <= 1000
    (best,) = [label for label, p in enumerate(words["probabilities"]) if p == max(words["probabilities"])]
    assert predictor.taxonomy.names[best] == "class 1"
    weights = words["words"][str(best)]
    assert len(weights) == len(words["text"])
    assert max(map(abs, weights)) == 100
    found = predictor.explain_words(WORDS[1], "class 1")
    strongest = max(abs(weight) for _, weight in found.words)
    np.testing.assert_allclose(weights, [100 * weight / strongest for _, weight in found.words], atol=0.51)
    assert words["thresholds"] == [round(1000 * float(t)) for t in predictor.predict(texts=WORDS[1])[0].thresholds]
    assert both["evidence"][str(best)].keys() == {"fused"}


def test_words_need_a_model_that_reads_them(model, tmp_path):
    with pytest.raises(IntclipError, match="lite"):
        write_folder_report(
            [model[1] / "0.png"], intclip.load("lite", engine="torch"), tmp_path / "r.html", texts=["sea"]
        )
    assert not (tmp_path / "r.html").exists()
