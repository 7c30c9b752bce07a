"""The commands `intclip labels …`."""

import json
import sys

import numpy as np
import pytest
from fake_llm import good, status

from intclip.backbones import registry
from intclip.cli import main
from intclip.labels import FORMS, load_taxonomy


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["intclip", "labels", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call


def test_list(run):
    code, out, _ = run("list")
    assert code == 0
    assert "28 intent, 15 group, 9 super-category" in out
    rows = json.loads(run("list", "--json")[1])
    assert {row["name"]: row["levels"] for row in rows}["mikels8"] == {"emotion": 8, "polarity": 2}


def test_show(run):
    code, out, _ = run("show", "intentonomy", "--sentences", "3-5")
    assert code == 0
    lines = out.splitlines()
    assert "Openness to experience" in lines
    assert "  Appreciating beauty" in lines
    assert f"    19 Natural beauty: {load_taxonomy('intentonomy').sentences('3-5')[19]}" in lines
    assert sum(line.startswith("    ") for line in lines) == 28
    assert sum(line.startswith("  ") and line[2] != " " for line in lines) == 15
    assert json.loads(run("show", "sentiment3", "--json")[1])["name"] == "sentiment3"


def test_check(run, tmp_path):
    assert run("check", "intentonomy") == (0, "intentonomy: 28 classes, valid\n", "")
    path = tmp_path / "my.yaml"
    path.write_text("- a\n- b\n")
    code, out, _ = run("check", path)
    assert code == 0
    assert out.startswith("advice: no sentences of 3-5")
    assert len(json.loads(run("check", path, "--json")[1])["advice"]) == 2
    path.write_text("- {name: a, parent: b}\n- {name: b, parent: a}\n")
    code, out, err = run("check", path)
    assert (code, out) == (2, "")
    assert err == f"intclip: {path}: cyclic parents: a → b → a; remove one of them\n"


@pytest.fixture
def files(tmp_path):
    """Descriptions of photos by sentiment, with labels in the layout of Intentonomy."""
    names = ("negative", "neutral", "positive")
    ids = [f"p{i}" for i in range(9)]
    annotations = {
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
        "images": [{"id": i, "filename": f"{i}.jpg"} for i in ids],
        "annotations": [{"image_id": i, "category_ids": [n % 3]} for n, i in enumerate(ids)],
    }
    (tmp_path / "labels.json").write_text(json.dumps(annotations))
    texts = {i: f"a {names[n % 3]} photo number {n}" for n, i in enumerate(ids)}
    (tmp_path / "texts.json").write_text(json.dumps({**texts, "unknown": "no labels"}))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch, tiny_backbone):
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda *args: tiny_backbone)


def test_score_descriptions(run, files, tiny):
    words = ("score", "sentiment3", files / "texts.json", "--labels", files / "labels.json", "--backbone", "tiny")
    code, out, err = run(*words, "--sentences", "all", "--per-class")
    assert (code, err) == (0, "")
    assert "9 items (1 left out)" in out
    for form in FORMS:
        assert f"\n{form} " in out
    assert "\npositive " in out
    report = json.loads(run(*words, "--sentences", "3-5", "--sentences", "fine", "--json")[1])
    assert [row["form"] for row in report["forms"]] == ["fine", "3-5"]
    assert set(report["forms"][0]["per_class"]) == {"negative", "neutral", "positive"}
    assert 0 < report["forms"][0]["mAP"] <= 1


def test_score_a_table_of_texts(run, tmp_path, tiny):
    rows = [f"{i}.jpg,{label},a {label} post {i}" for i, label in enumerate(("negative", "neutral", "positive") * 2)]
    (tmp_path / "posts.csv").write_text("image,label,text\n" + "\n".join(rows) + "\n")
    words = ("score", "sentiment3", tmp_path / "posts.csv", "--texts", "--split", "train", "--backbone", "tiny")
    code, out, err = run(*words, "--set", "taxonomy=sentiment3")
    assert (code, err) == (0, "")
    assert "6 items" in out


def test_bad_input_is_one_line(run, files, tiny):
    cases = [
        (("score", "sentimnt", "x"), "did you mean 'sentiment3'"),
        (("score", "sentiment3", "x", "--sentences", "9"), "no sentences in form '9'"),
        (("score", "sentiment3", "nowhere.csv"), "no dataset or file 'nowhere.csv'"),
        (("score", "mikels8", files / "texts.json", "--labels", files / "labels.json"), "negative"),
        (("score", "sentiment3", files / "labels.json", "--labels", files / "labels.json"), "instead of a text"),
        (("integrate", "sentiment3", "--model", "m", "--out", files / "o.yaml"), "no API key; set OPENAI_API_KEY"),
        (("integrate", "sentiment3", "--model", "m", "--out", files / "labels.json"), "exists; choose"),
        (("integrate", "sentiment3", "--model", "m", "--out", files / "o", "--length", "7"), "is none of: 3-5, 6-9"),
    ]
    for words, message in cases:
        code, out, err = run(*words)
        assert (code, out) == (2, ""), words
        assert message in err, err
        assert err.startswith("intclip: ")
        assert err.count("\n") == 1


def test_integrate_writes_a_taxonomy_that_loads(run, server, tmp_path):
    out = tmp_path / "new.yaml"
    words = ("integrate", "mikels8", "--model", "fake", "--base-url", server.url, "--out", out)
    code, printed, err = run(*words, "--length", "6-9", "--length", "11-15")
    assert (code, err) == (0, "")
    assert "6-9 words: 8 sentences, 2 answers requested, 0 cached" in printed
    taxonomy, before = load_taxonomy(out), load_taxonomy("mikels8")
    assert taxonomy.names == before.names
    assert taxonomy.parents == before.parents
    assert taxonomy.sentences("3-5") == before.sentences("3-5")
    assert set(taxonomy.sentences("6-9")).isdisjoint(before.sentences("6-9"))
    assert out.read_text().startswith("# 6-9 words: written by fake-1 on 20")
    asked = len(server.requests)
    code, printed, _ = run(*words, "--length", "6-9", "--overwrite", "--json")
    report = json.loads(printed)
    assert len(server.requests) == asked
    assert (report["forms"][0]["asked"], report["forms"][0]["cached"]) == (0, 2)
    assert report["forms"][0]["sentences"]["awe"] == taxonomy.sentences("6-9")[2]


def test_integrate_leaves_nothing_half_written(run, server, tmp_path):
    server.script = [good]
    server.otherwise = status(400, "no more")
    out = tmp_path / "new.yaml"
    code, printed, err = run("integrate", "mikels8", "--model", "fake", "--base-url", server.url, "--out", out)
    assert (code, printed) == (2, "")
    assert "no more" in err
    assert not out.exists()
    assert len(list((tmp_path / "new.yaml.answers").iterdir())) == 1


def test_sentences_rank_descriptions_better_than_names(run, tmp_path):
    """The real text tower, on descriptions without class names."""
    texts = {
        "Natural beauty": ["Mist over a quiet lake below snowy peaks at dawn.", "Golden light falls on a pine forest."],
        "In love with animals": ["A puppy licks the hand of its owner.", "A grey horse nuzzles a girl on a farm."],
        "Beat others, compete": ["Runners sprint to the finish line.", "Two boxers fight for the title in a ring."],
    }
    taxonomy = load_taxonomy("intentonomy")
    ids, labels, images = {}, [], []
    for name, lines in texts.items():
        for line in lines:
            key = f"p{len(ids)}"
            ids[key] = line
            labels.append({"image_id": key, "category_ids": [taxonomy.index(name)]})
            images.append({"id": key, "filename": f"{key}.jpg"})
    categories = [{"id": k, "name": name} for k, name in enumerate(taxonomy.names)]
    (tmp_path / "t.json").write_text(json.dumps(ids))
    content = {"categories": categories, "images": images, "annotations": labels}
    (tmp_path / "l.json").write_text(json.dumps(content))
    words = (
        "score",
        "intentonomy",
        tmp_path / "t.json",
        "--labels",
        tmp_path / "l.json",
        "--sentences",
        "all",
        "--json",
    )
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    forms = {row["form"]: row for row in json.loads(out)["forms"]}
    assert np.mean([forms[f]["ranking"] for f in ("6-9", "11-15", "16-20")]) > forms["fine"]["ranking"]
    # of two photos per class, at most one is ranked one place too low: average precision (1 + 2/3) / 2
    assert forms["11-15"]["mAP"] >= (1 + 1 + (1 + 2 / 3) / 2) / 3 - 1e-9
