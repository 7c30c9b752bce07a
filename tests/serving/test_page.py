"""The app page's requests to its server."""

import io
import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from starlette.testclient import TestClient
from watched import NAMES, WatchedPredictor, photo

from intclip.data import ocr
from intclip.data.demo_photos import demo_photos
from intclip.data.tabular import load_table
from intclip.errors import IntclipError, MissingExtraError, TaxonomyError
from intclip.evidence.heat import LEGEND
from intclip.inference.loading import load
from intclip.labels.reading import parse_taxonomy
from intclip.serving.app import training
from intclip.serving.app.own_labels import MOST_LABELS, OwnLabels, make_taxonomy
from intclip.serving.app.routes import PREVIEW_SIDE, create_app, photo_names
from intclip.serving.app.training import BackgroundTrainer, photo_file
from intclip.serving.batcher import Batcher
from intclip.serving.settings import Settings

PIXELS = 50_000_000


@pytest.fixture
def page(tmp_path):
    """The page with the fake model, two photos and training."""
    for name, red in (("a.png", 200), ("b.png", 10)):
        (tmp_path / name).write_bytes(photo(red))
    photos = [tmp_path / "a.png", tmp_path / "b.png"]
    models = {"first": WatchedPredictor(), "other": WatchedPredictor()}
    with TestClient(create_app(models, photos, models_folder=tmp_path / "models")) as client:
        yield client


def test_the_page_lies_beside_the_api_over_one_queue(page):
    index = page.get("/")
    assert index.url.path == "/app/"
    assert "default-src 'self'" in index.headers["Content-Security-Policy"]
    assert index.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    for file in ("app.js", "app.css", "look.css", "overlay.js"):
        assert f'"{file}"' in index.text
        assert page.get(f"/app/{file}").headers["Content-Security-Policy"]
    assert page.get("/favicon.ico").headers["content-type"].startswith("image/svg+xml")
    assert page.post("/v1/predict", files={"images": photo(255)}).json()["results"][0]["labels"] == ["class 0"]
    assert not [path for path in page.get("/openapi.json").json()["paths"] if "app" in path]


def test_the_page_knows_its_photos_and_the_colours_of_every_other_picture(page, tmp_path):
    facts = page.get("/app/facts").json()
    assert facts["photos"] == ["a.png", "b.png"]
    assert tuple(facts["legend"]) == LEGEND
    assert len(facts["palette"]) == 256
    answer = page.get("/app/photos/1")
    assert answer.content == (tmp_path / "b.png").read_bytes()
    # A browser must not run the file's content.
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    (tmp_path / "a.png").unlink()
    for place in ("2", "-1", "0", "x", "..%2f..%2fetc%2fpasswd"):
        assert page.get(f"/app/photos/{place}").status_code in (404, 422)


def test_nothing_beside_the_page_is_served(page):
    for path in ("/app/../routes.py", "/app/%2e%2e/routes.py", "/app/..%2froutes.py", "/app/nothing"):
        assert page.get(path).status_code == 404


def test_photos_are_called_by_their_paths(tmp_path, monkeypatch):
    trip = tmp_path / "trip"
    photos = [trip / "a.png", trip / "day 2" / "b.png"]
    monkeypatch.chdir(tmp_path)
    assert photo_names(photos) == ["trip/a.png", "trip/day 2/b.png"]
    monkeypatch.chdir("/")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert photo_names(photos) == ["a.png", "day 2/b.png"]
    assert photo_names([]) == []


def test_what_the_browser_cannot_decode_is_drawn(page):
    stream = io.BytesIO()
    Image.new("RGB", (2 * PREVIEW_SIDE, PREVIEW_SIDE), (10, 200, 30)).save(stream, "TIFF")
    answer = page.post("/app/preview", content=stream.getvalue())
    drawn = Image.open(io.BytesIO(answer.content))
    assert (drawn.format, drawn.size) == ("JPEG", (PREVIEW_SIDE, PREVIEW_SIDE // 2))
    assert answer.headers["X-Photo-Size"] == f"{2 * PREVIEW_SIDE}x{PREVIEW_SIDE}"
    assert np.abs(np.asarray(drawn).astype(int) - (10, 200, 30)).max() < 6
    assert page.post("/app/preview", content=b"no photo").status_code == 204


def test_words_in_a_picture_are_read_for_its_caption(page, monkeypatch):
    picture = Image.new("RGB", (640, 160), (70, 90, 60))
    ImageDraw.Draw(picture).text((30, 40), "WALK INTO A MEETING", fill="white", font=ImageFont.load_default(44))
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    assert page.get("/app/facts").json()["reads_text"]
    words = ocr.read_words(stream.getvalue())  # it also loads the engine, outside the service's time limit
    assert words.upper().split() == ["WALK", "INTO", "A", "MEETING"]

    def read(content: bytes):
        return page.post("/app/read-text", files={"image": ("meme.png", content)})

    found = read(stream.getvalue())
    assert found.status_code == 200
    assert found.json() == {"text": words}
    broken = read(b"no photo")  # its prediction has the error
    assert (broken.status_code, broken.json()) == (200, {"text": ""})

    def missing(*_, **__):
        raise MissingExtraError("install it with: pip install 'intclip[ocr]'")

    monkeypatch.setattr(ocr, "_engine", missing)
    refused = read(stream.getvalue())
    assert refused.status_code >= 400
    assert "intclip[ocr]" in refused.json()["detail"]


def test_a_request_without_a_readable_photo_is_answered_to_the_page(page):
    """A rejected request would be an error in the browser's console."""
    answer = page.post("/app/predict", files={"images": ("broken.jpg", b"no photo")}, data={"model": "other"})
    assert answer.status_code == 200
    (result,) = answer.json()["results"]
    assert result["source"] == "broken.jpg"
    assert "broken.jpg" in result["error"]
    assert result["scores"] is None


def test_own_labels_are_scored_like_a_model_with_these_labels(page):
    files = [("images", (path.name, path.read_bytes())) for path in demo_photos()[:2]]
    answer = page.post("/app/predict", files=[*files, ("images", b"no photo")], data={"labels": ["a cat", "a bowl"]})
    labels = make_taxonomy(["a cat", "a bowl"])
    wanted = load("lite", taxonomy=labels, engine="torch").predict(demo_photos()[:2])
    *found, broken = answer.json()["results"]
    for one, expected in zip(found, wanted, strict=True):
        assert one["scores"] == pytest.approx(expected.scores, abs=1e-5)
        assert one["labels"] == expected.labels
    assert broken["error"]


@pytest.mark.parametrize("kind", ["regions", "fine"])
def test_evidence_of_own_labels_is_that_of_a_model_with_these_labels(page, kind):
    path = demo_photos()[0]
    data = {"labels": ["an astronaut", "a bowl of soup"], "label": "an astronaut", "kind": kind}
    found = page.post("/app/explain", files={"image": path.read_bytes()}, data=data).json()
    labels = make_taxonomy(data["labels"])
    wanted = load("lite", taxonomy=labels, engine="torch").explain(path, "an astronaut", kind=kind)
    assert tuple(found["box"].values()) == wanted.box
    assert found["probability"] == pytest.approx(wanted.probability, abs=1e-5)
    np.testing.assert_allclose(found["regions"]["sight"], wanted.regions["sight"], atol=1e-4)


def test_own_labels_are_lines():
    labels = make_taxonomy(["  A quiet   morning", "", "a QUIET morning", "yes: no", "- 3"])
    assert labels.names == ("A quiet morning", "yes: no", "- 3")
    for wrong in ([f"label {i}" for i in range(MOST_LABELS + 1)], [" ", ""]):
        with pytest.raises(TaxonomyError):
            make_taxonomy(wrong)


def test_a_photo_is_encoded_once_for_all_labels(monkeypatch):
    own, content = OwnLabels(max_pixels=PIXELS), demo_photos()[0].read_bytes()
    own.predict(content, make_taxonomy(["a"]))
    monkeypatch.setattr(own, "_pixels", lambda *_: pytest.fail("it was read again"))
    first = own.predict(content, make_taxonomy(["a cat", "a dog"]))
    again = own.predict(content, make_taxonomy(["a cat", "a dog"]))
    np.testing.assert_array_equal(first.probabilities, again.probabilities)


def corrected(count: int) -> tuple[list[dict], list[tuple]]:
    """Return rows as the page sends them, and their photos: red ones have the first class, others none."""
    rng = np.random.default_rng(0)
    rows, files = [], []
    for number in range(count):
        red = number % 2 == 0
        pixels = (rng.normal(scale=20, size=(48, 48, 3)) + ((220, 30, 30) if red else (20, 60, 220))).clip(0, 255)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        rows.append({"name": f"{number}.png", "labels": [NAMES[0]] if red else [NAMES[1]]})
        files.append(("images", (f"{number}.png", stream.getvalue())))
    return rows, files


FROM_PAGE = {"X-Intclip-Page": "1"}


def wait_for(page: TestClient) -> dict:
    end = time.monotonic() + 200
    while (status := page.get("/app/training").json())["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    return status


@pytest.mark.slow
def test_corrections_become_a_model_that_is_served(page, tmp_path):
    rows, files = corrected(24)
    data = {"name": "mine", "rows": json.dumps(rows), "model": ""}
    assert page.get("/app/training").json()["state"] == "idle"
    started = page.post("/app/training", files=files, data=data, headers=FROM_PAGE).json()
    assert (started["state"], started["photos"]) == ("running", 24)
    again = page.post("/app/training", files=files, data=data, headers=FROM_PAGE)
    assert again.status_code == 422  # one at a time
    status = wait_for(page)
    assert (status["state"], status["model"], status["folder"]) == ("done", "mine", str(tmp_path / "models" / "mine"))
    assert [one["name"] for one in page.get("/v1/models").json()] == ["first", "other", "mine"]
    red, blue = (files[place][1][1] for place in (0, 1))
    found = page.post("/v1/predict", files=[("images", red), ("images", blue)], data={"model": "mine"}).json()
    assert [one["labels"] for one in found["results"]] == [[NAMES[0]], [NAMES[1]]]
    assert load(tmp_path / "models" / "mine").predict(red)[0].labels == [NAMES[0]]

    # The same figures as `intclip fit` of the table that the page offers for download.
    from intclip.training.fitting import fit_dataset

    for row, (_, (_, content)) in zip(rows, files, strict=True):
        (tmp_path / row["name"]).write_bytes(content)
    lines = ["image,labels", *(f"{row['name']},{row['labels'][0]}" for row in rows)]
    (tmp_path / "corrections.csv").write_text("\n".join(lines) + "\n")
    fitted = fit_dataset(load_table(tmp_path / "corrections.csv", task="multilabel"))
    *others, mine = page.get("/v1/models").json()
    assert all(one["held_out"] == {} for one in others)
    assert mine["held_out"] == fitted.figures(fitted.mode)
    assert load(tmp_path / "models" / "mine").metrics == json.loads(json.dumps(fitted.metrics()))
    held_out = fitted.held_out["image"]
    targets, decided = fitted.targets > 0.5, held_out.probabilities >= held_out.thresholds
    micro = 2 * (targets & decided).sum() / (targets.sum() + decided.sum())
    assert mine["held_out"]["micro_f1"]["value"] == pytest.approx(micro)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"name": "../mine"}, "name"),
        ({"name": ""}, "name"),
        ({"rows": "[]"}, "0 rows"),
        ({"rows": "no JSON"}, "rows"),
        ({"model": "nothing"}, "nothing"),
    ],
)
def test_wrong_trainings_are_refused(page, change, told):
    rows, files = corrected(2)
    data = {"name": "mine", "rows": json.dumps(rows), "model": "first"} | change
    answer = page.post("/app/training", files=files, data=data, headers=FROM_PAGE)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]


def test_another_site_cannot_start_a_training(page):
    rows, files = corrected(2)
    answer = page.post("/app/training", files=files, data={"name": "mine", "rows": json.dumps(rows)})
    assert answer.status_code == 403


def test_too_few_photos_end_in_one_line_and_leave_nothing(page, tmp_path):
    rows, files = corrected(4)
    data = {"name": "mine", "rows": json.dumps(rows), "model": ""}
    page.post("/app/training", files=files, data=data, headers=FROM_PAGE)
    status = wait_for(page)
    assert status["state"] == "failed"
    assert "20" in status["error"]
    assert not (tmp_path / "models").exists()


def test_names_that_are_taken_are_numbered_and_a_closed_app_stops_training(tmp_path, monkeypatch):
    import tempfile

    (tmp_path / "mine-2").mkdir()
    reached, closing = threading.Event(), threading.Event()

    def fit(rows, home, taxonomy, out, tell):
        assert (Path(home) / photo_file(0)).exists()
        reached.set()
        assert closing.wait(60)
        time.sleep(0.05)
        tell("reading photos", 1, 2)
        pytest.fail("it was not stopped")

    monkeypatch.setattr(training, "_fit", fit)
    batcher = Batcher({"mine": WatchedPredictor()})
    trainer, photos = BackgroundTrainer(batcher, tmp_path), tempfile.TemporaryDirectory()
    (Path(photos.name) / photo_file(0)).write_bytes(b"")
    assert trainer._free("mine") == "mine-3"
    trainer.start([training.CorrectedPhoto(name="a", labels=[])], photos, None, "mine")
    assert reached.wait(60)
    with pytest.raises(IntclipError):
        trainer.start([], tempfile.TemporaryDirectory(), None, "mine")
    threading.Timer(0.01, closing.set).start()
    trainer.close()
    assert trainer.status.state == "failed"
    assert not Path(photos.name).exists()
    batcher.close()


def test_words_are_explained_by_a_model_that_reads_them_alone():
    class Reading(WatchedPredictor):
        def __init__(self):
            super().__init__()
            self.channels = self.alone = ("image", "text")

        def explain_words(self, text, label, *, how="occlusion"):
            from intclip.evidence.words import WordEvidence

            words = [(word, 1.5 if word == "red" else -0.5) for word in text.split()]
            return WordEvidence(label, 0.9, 2.2, "log-odds", words)

    models = {"posts": Reading(), "plain": WatchedPredictor()}
    with TestClient(create_app(models, settings=Settings())) as client:
        asked = {"text": "a red <b>", "label": "class 0"}
        found = client.post("/v1/explain", json=asked).json()
        assert found["words"] == [["a", -0.5], ["red", 1.5], ["<b>", -0.5]]
        assert (found["probability"], found["regions"], found["box"]) == (0.9, {}, None)
        assert client.post("/app/explain", json=asked).json() == found
        for wrong in ({"model": "plain"}, {"label": "nothing"}, {"text": " "}, {"text": None}):
            assert client.post("/v1/explain", json=asked | wrong).status_code == 422
        both = asked | {"image": "aGk="}
        assert client.post("/v1/explain", json=both).status_code == 422
        assert [one["explains_words"] for one in client.get("/v1/models").json()] == [True, False]


def test_labels_of_a_taxonomy_are_trained_on_whole(page, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(training, "_fit", lambda rows, home, taxonomy, out, tell: given.update(taxonomy=taxonomy))
    monkeypatch.setattr(training, "load", lambda folder: WatchedPredictor())
    rows, files = corrected(2)
    data = {"name": "mine", "rows": json.dumps(rows), "model": "other"}
    page.post("/app/training", files=files, data=data, headers=FROM_PAGE)
    assert wait_for(page)["state"] == "done"
    assert given["taxonomy"].names == parse_taxonomy(list(NAMES), "x").names
