"""From a table to a model to predictions: photos, text, or both, with the embedded backbone."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import intclip
from families import FAMILIES
from intclip.cli.main import app
from intclip.data import load_dataset
from intclip.errors import DatasetError, IntclipError
from intclip.inference.conflict import conflict
from intclip.training import fitting
from intclip.training.fitting import fit_dataset, usable_samples
from labelled_posts import KINDS, write_posts


def invoke(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("posts")
    posts = write_posts(folder, 24)
    result = invoke("fit", posts, "--out", folder / "model", "--folds", 2, "--json")
    assert result.exit_code == 0, result.output
    return folder, json.loads(result.stdout)


@pytest.fixture(scope="module")
def model(home):
    return intclip.load(home[0] / "model")


def test_fit_tells_what_it_chose_and_how_good_it_is(home):
    _, facts = home
    assert facts["posts"] == 24
    assert {"val", "val-image", "val-text"} <= set(facts)
    low, high = facts["val"]["intervals"]["mAP"]
    assert 0 <= low <= facts["val"]["headline"]["mAP"] <= high <= 1
    assert set(facts["heads"]) == {"text", "image"}


def test_fit_tells_how_many_posts_it_leaves_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="intclip")
    table = write_posts(tmp_path, 24)
    rows = table.read_text().splitlines()
    rows[1], rows[2] = "0.png,,sea", ",a hot fire burning,fire"  # without words, without a photo
    rows[3] = rows[3].removesuffix("sea")
    table.write_text("\n".join(rows))
    dataset = load_dataset(table)
    samples, used = usable_samples(dataset, ["train"], ("text", "image"))
    assert (len(samples), used) == (21, ["text", "image"])
    assert caplog.messages == ["posts: 3 of 24 posts lack text or image or labels and are skipped"]
    assert len(usable_samples(dataset, ["train"], ["text"])[0]) == 22
    assert caplog.messages[-1] == "posts: 2 of 24 posts lack text or labels and are skipped"
    caplog.clear()
    usable_samples(load_dataset(write_posts(tmp_path, 24)), ["train"], ("text", "image"))
    assert caplog.messages == []


def test_minilm_beside_another_backbone_stores_and_converts_its_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "load_backbone", lambda name: FAMILIES["CLIP ViT"]())
    converted = []
    monkeypatch.setattr(fitting, "use_engine", converted.append)
    dataset = load_dataset(write_posts(tmp_path, 24))
    words = fit_dataset(dataset, folds=0, backbone="any").method.text_backbone.text
    assert type(words) in map(type, converted)
    monkeypatch.setattr(type(words), "forward", lambda *_: pytest.fail("encoded again"))
    fit_dataset(dataset, folds=0, backbone="any")


def test_photo_alone_words_alone_and_both(model, home):
    assert model.channels == model.alone == ("image", "text")
    photo = home[0] / "2.png"
    words = "waves on a blue sea"
    by_photo, by_words = model.predict(photo)[0], model.predict(texts=words)[0]
    both = model.predict([photo], texts=[words])[0]
    for found in (by_photo, by_words, both):
        assert found.scores["sea"] > found.scores["fire"]
    assert by_words.source == "text 1"
    mixed = model.predict([photo, None, photo], texts=[None, words, words])
    for one, expected in zip(mixed, (by_photo, by_words, both), strict=True):
        np.testing.assert_allclose(one.probabilities, expected.probabilities, atol=1e-5)
        np.testing.assert_allclose(one.thresholds, expected.thresholds)


def test_what_cannot_be_read(model, home):
    with pytest.raises(IntclipError, match="text 1: neither photo nor text"):
        model.predict([None], texts=[" "])
    with pytest.raises(IntclipError, match=r"photos.*texts"):
        model.predict([home[0] / "0.png"] * 2, texts=["one"])
    with pytest.raises(IntclipError, match=r"texts.*photos"):
        model.predict([home[0] / "0.png"], texts=["one", "two"])
    with pytest.raises(IntclipError, match=r"images.*texts"):
        model.predict()
    found = model.predict([home[0] / "no.png", None], texts=["sea", "sea"], errors="collect")
    assert "no.png" in found[0].error
    assert found[1].error is None
    with pytest.raises(IntclipError, match="lite"):
        intclip.load("lite", engine="torch").predict(home[0] / "0.png", texts=["sea"])


def test_every_engine_gives_the_same_numbers(model, home):
    photos = [home[0] / f"{i}.png" for i in range(5)]
    words = [None, "a blue sea", None, "a hot fire", "sea"]
    expected = model.predict(photos, texts=words)
    for engine in ("torch", "onnx"):
        other = intclip.load(home[0] / "model", engine=engine).predict(photos, texts=words)
        for found, one in zip(other, expected, strict=True):
            np.testing.assert_allclose(found.probabilities, one.probabilities, atol=1e-4)


def test_thresholds_of_the_caller(model):
    assert model.predict(texts="sea", thresholds=0.0)[0].labels == ["fire", "sea"]
    own = model.predict(texts="sea")[0].thresholds
    changed = model.predict(texts="sea", thresholds={"sea": 0.99})[0].thresholds
    assert changed[1] == pytest.approx(0.99)
    assert changed[0] == own[0]


def test_evidence_of_words_is_the_fall_of_the_odds(model):
    found = model.explain_words("burning waves on the sea", "sea")
    assert [word for word, _ in found.words] == ["burning", "waves", "on", "the", "sea"]
    weights = dict(found.words)
    assert max(weights, key=weights.__getitem__) in ("waves", "sea")
    assert weights["burning"] < weights["sea"]
    whole = model.predict(texts="burning waves on the sea")[0].scores["sea"]
    less = model.predict(texts="burning waves on the")[0].scores["sea"]
    odds = np.log(whole / (1 - whole)) - np.log(less / (1 - less))
    assert weights["sea"] == pytest.approx(odds, abs=1e-3)
    with pytest.raises(IntclipError, match="no words"):
        model.explain_words("  ", "sea")


def test_conflict_of_photo_and_words(model, home):
    sea, fire = home[0] / "2.png", home[0] / "1.png"
    words = "waves on the beach and a blue sea"
    same, against, alone, by_words = model.predict([sea, fire, sea, None], texts=[words, words, None, words])
    assert 0 <= same.conflict.score < against.conflict.score <= 1
    assert alone.conflict is by_words.conflict is None
    assert "conflict" not in alone.to_dict()
    # The figures of each channel equal those of the channel alone.
    photo = model.predict(fire)[0]
    divergences = conflict(photo.probabilities[None], by_words.probabilities[None], exclusive=False)
    assert against.conflict.score == pytest.approx(float(divergences[0]), abs=1e-4)
    for name, (by_photo, read) in against.conflict.disputed.items():
        assert by_photo == pytest.approx(photo.scores[name], abs=1e-4)
        assert read == pytest.approx(by_words.scores[name], abs=1e-4)
        assert (name in photo.labels) != (name in by_words.labels)
    row = against.to_dict()
    assert row["conflict"] == against.conflict.score
    assert set(row["disputed"]) == set(against.conflict.disputed) != set()


def test_conflict_in_tables(model, home, tmp_path):
    folder = home[0]
    table = tmp_path / "posts.jsonl"
    rows = [{"image": str(folder / "1.png"), "text": "a blue sea"}, {"text": "a blue sea"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    out = tmp_path / "out.csv"
    result = invoke("predict", table, "--model", folder / "model", "--csv", out, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    with out.open(newline="") as stream:
        cells = list(csv.DictReader(stream))
    assert list(cells[0]) == ["source", "error", "labels", "conflict", "fire", "sea"]
    assert float(cells[0]["conflict"]) == pytest.approx(found[0]["conflict"], rel=1e-4)
    assert cells[1]["conflict"] == ""
    assert "conflict" not in found[1]
    shown = invoke("predict", table, "--model", folder / "model").stdout
    assert shown.count("conflict") == 1


def test_evidence_in_the_photo_lies_where_the_label_is(model, tmp_path):
    """A photo of fire with a quarter of sea: that quarter is the evidence for the sea."""
    noise = np.random.default_rng(1).normal(scale=20, size=(224, 224, 3))
    noise += KINDS["fire"][0]
    noise[:112, :112] += np.array(KINDS["sea"][0]) - KINDS["fire"][0]
    file = tmp_path / "half.png"
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(file)
    evidence = model.explain(file, "sea")
    regions = evidence.regions["fused"]
    assert regions.shape == (7, 7)
    assert regions[:3, :3].mean() > regions[4:, 4:].mean()
    assert evidence.probability == pytest.approx(model.predict(file)[0].scores["sea"], abs=1e-4)
    assert model.explain(file, "sea", kind="fine").fused.max() == 1


def test_explain_shows_words_and_photo(home, tmp_path):
    folder, _ = home
    result = invoke(
        "explain", "--text", "a blue <sea>", "--model", folder / "model", "--json", "--out", tmp_path / "w.html"
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["label"] == "sea"
    assert [entry["word"] for entry in found["text"]["words"]] == ["a", "blue", "<sea>"]
    assert "&lt;sea&gt;" in (tmp_path / "w.html").read_text()
    both = ("explain", folder / "2.png", "--text", "a hot fire", "--model", folder / "model", "--label", "fire")
    result = invoke(*both, "--plain", "--out", tmp_path / "o.png", "--json")
    found = json.loads(result.stdout)
    assert {"photo", "label", "probability", "branches", "out", "text"} <= set(found)
    assert Image.open(tmp_path / "o.png").size == (64, 64)
    shown = invoke(*both, "--out", tmp_path / "o.png").stdout
    assert "fused evidence" in shown
    assert "from the text alone" in shown
    for wrong, message in (
        (("explain", "--model", folder / "model"), "give a photo, --text, or both"),
        (("explain", "--text", "sea", "--out", "w.png", "--model", folder / "model"), "is written as .html"),
        (("explain", "--text", "sea", "--engine", "torch"), "choose a label with --label"),
    ):
        caught = CliRunner().invoke(app, list(map(str, wrong)))
        assert isinstance(caught.exception, IntclipError)
        assert message in str(caught.exception)


def test_a_long_text_is_read_in_pieces(model):
    assert np.isfinite(model.predict(texts="sea " * 600)[0].probabilities).all()


def test_predict_a_table(home):
    folder, _ = home
    table = folder / "new.jsonl"
    rows = [{"image": "2.png", "text": "a blue sea"}, {"text": "a hot fire"}, {"image": "1.png"}]
    table.write_text("\n".join(map(json.dumps, rows)))
    result = invoke("predict", table, "--model", folder / "model", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [max(row["scores"], key=row["scores"].get) for row in found] == ["sea", "fire", "fire"]
    result = invoke("predict", "--text", "a blue sea", "--model", folder / "model", "--json")
    assert json.loads(result.stdout)[0]["scores"]["sea"] > 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--head", "magic"], "'magic'"),
        (["--channel", "sound"], "'sound'"),
        (["--folds", 1], "--folds 1"),
        (["--text-encoder", "nowhere"], "'nowhere'"),
        (["--split", "test"], "'test'"),
    ],
)
def test_fit_refuses_in_one_line(home, tmp_path, words, message):
    with pytest.raises(IntclipError, match=message):
        CliRunner().invoke(
            app,
            ["fit", str(home[0] / "posts.csv"), "--out", str(tmp_path / "m"), *map(str, words)],
            catch_exceptions=False,
            standalone_mode=False,
        )
    assert not (tmp_path / "m").exists()


def test_fit_goes_on_past_a_damaged_photo_and_names_it(tmp_path, caplog):
    caplog.set_level("INFO", logger="intclip")
    table = write_posts(tmp_path, 24)
    (tmp_path / "5.png").write_bytes(b"no photo")
    (tmp_path / "7.png").unlink()
    fitted = fit_dataset(load_dataset(table, missing="keep"), folds=0)
    assert len(fitted.ids) == 22
    assert "5.png" not in fitted.ids
    told = " ".join(caplog.messages)
    assert "5.png" in told
    assert "7.png" in told


def test_paths_with_backslashes_are_found(tmp_path):
    table = write_posts(tmp_path, 24)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        (tmp_path / f"{i}.png").rename(tmp_path / "photos" / f"{i}.png")
    table.write_text("".join(f"photos\\{line}" if line[0].isdigit() else line for line in table.open()))
    samples, used = usable_samples(load_dataset(table), ["train"], ("image", "text"))
    assert len(samples) == 24
    assert samples[3].image == tmp_path / "photos" / "3.png"
    assert used == ["image", "text"]


def test_missing_photos_are_named(tmp_path):
    table = write_posts(tmp_path, 24)
    for i in range(24):
        (tmp_path / f"{i}.png").unlink()
    rows = table.read_text().splitlines()
    table.write_text("\n".join(",".join([cells[0], "", cells[2]]) for cells in (row.split(",") for row in rows)))
    with pytest.raises(DatasetError, match=r"0\.png"):
        usable_samples(load_dataset(table, missing="keep"), ["train"], ("image", "text"))


def test_a_label_without_negatives_is_named(tmp_path, caplog):
    def table(labels):
        rows = ["text,labels", *(f"number {i},{labels[i % 2]}" for i in range(24))]
        (tmp_path / "posts.csv").write_text("\n".join(rows))
        return load_dataset(tmp_path / "posts.csv")

    with pytest.raises(DatasetError, match="'always'"):
        fit_dataset(table(["always", "always"]), folds=0)
    fit_dataset(table(["sea;always", "always"]), folds=0)
    assert "'always'" in " ".join(caplog.messages)


def test_the_heads_of_posts_are_not_imported_for_other_models():
    import subprocess
    import sys

    code = (
        "import sys, intclip; m = intclip.load('proxy', engine='torch'); "
        "print([name for name in sys.modules if 'post_heads' in name or name.startswith('sklearn')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
