"""What the app writes and reads without a browser: corrections as a table, lines as labels."""

import contextlib
import copy
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.route_utils import delete_files_created_by_app
from PIL import Image
from starlette.testclient import TestClient
from watched import CLASSES, WatchedPredictor, photo

from intclip.data.demo_photos import demo_photos
from intclip.data.tabular import load_table
from intclip.errors import ImageError, TaxonomyError
from intclip.evidence.evidence import LEGEND
from intclip.inference.loading import load
from intclip.inference.prediction import Conflict, Prediction
from intclip.labels.reading import parse_taxonomy
from intclip.serving.api import create_api
from intclip.serving.app import views
from intclip.serving.app.callbacks import Callbacks
from intclip.serving.app.layout import lay_out
from intclip.serving.app.own_intents import MOST, OwnIntents, read_intents
from intclip.serving.app.server import mount_page
from intclip.serving.app.session import Photo, corrections_table
from intclip.serving.app.studio import Studio
from intclip.serving.batcher import Batcher

NAMES = ("joy", "sun; sand", "[rest]", 'a "quoted", name')


@pytest.fixture
def studio_of(tmp_path):
    """Makes a studio over one photo, given as the file's bytes, and some models."""
    with contextlib.ExitStack() as stack:

        def make(content, models, **limits):
            (tmp_path / "a.png").write_bytes(content)
            batcher = stack.enter_context(contextlib.closing(Batcher(models, **limits)))
            return Studio(batcher, [tmp_path / "a.png"])

        yield make


def test_the_page_lies_beside_the_api_over_one_queue():
    api = create_api({"a": WatchedPredictor()})
    with TestClient(mount_page(api, api.state.batcher, [], "/app")) as client:
        assert "gradio" in client.get("/app/").text
        icon = client.get("/favicon.ico")  # a browser asks for it at the root
        assert (icon.status_code, icon.headers["content-type"]) == (200, "image/svg+xml")
        answer = client.post("/v1/predict", files={"images": photo(255)})
        assert answer.json()["results"][0]["labels"] == ["class 0"]
        assert "/favicon.ico" not in client.get("/openapi.json").json()["paths"]


def test_examples_that_cannot_be_read_are_left_out_and_told(tmp_path, caplog):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no photo")
    (tmp_path / "c.png").write_text("no photo")
    with contextlib.closing(Batcher({"lite": WatchedPredictor()})) as batcher:
        studio = Studio(batcher, [tmp_path / "b.png", tmp_path / "a.png"])
        assert [photo.name for photo in studio.new_session().photos] == ["a.png"]
        assert "left out: b.png is not an image" in caplog.text
        with pytest.raises(ImageError, match=r"^b\.png is not an image"):
            Studio(batcher, [tmp_path / "b.png"])
        with pytest.raises(ImageError, match="none of the 2 photos could be read"):
            Studio(batcher, [tmp_path / "b.png", tmp_path / "c.png"])


@pytest.mark.parametrize(
    "held", [[], ["joy"], ["joy", 'a "quoted", name'], ["sun; sand"], ["[rest]", "joy"], ["joy", "[rest]"], list(NAMES)]
)
def test_corrections_come_back_as_they_were_kept(tmp_path, held):
    photos = [Photo(tmp_path / "x", name, "") for name in ("left.png", "trip/a, b.png")]
    for one in photos:
        (tmp_path / one.name).parent.mkdir(exist_ok=True)
        (tmp_path / one.name).write_bytes(b"x")
    (tmp_path / "corrections.csv").write_text(corrections_table(photos, {1: held}, {1: 'says "hi",\nand more'}))
    dataset = load_table(tmp_path / "corrections.csv", taxonomy=parse_taxonomy(list(NAMES), "test"))
    (sample,) = dataset.splits["train"]
    assert sample.image == tmp_path / "trip/a, b.png"
    assert sample.text == 'says "hi",\nand more'
    assert [name for name, share in zip(NAMES, sample.targets, strict=True) if share == 1] == [
        name for name in NAMES if name in held
    ]
    assert set(sample.targets) <= {0, 1}  # nothing is unknown


def test_own_intents_are_lines():
    assert read_intents(" \n\n") is None
    labels = read_intents("  A quiet   morning\n\na QUIET morning\nyes: no\n- 3\n")
    assert labels is not None
    assert labels.names == ("A quiet morning", "yes: no", "- 3")
    with pytest.raises(TaxonomyError, match="at most"):
        read_intents("\n".join(f"label {i}" for i in range(MOST + 1)))


@pytest.mark.parametrize(("fine", "kind"), [(False, "regions"), (True, "fine")])
def test_evidence_of_own_intents_is_that_of_a_model_with_these_labels(fine, kind):
    labels = read_intents("an astronaut\na bowl of soup")
    photo_file = demo_photos()[0]
    found = OwnIntents().explain(photo_file, labels, "an astronaut", fine=fine)
    wanted = load("lite", taxonomy=labels, engine="torch").explain(photo_file, "an astronaut", kind=kind)
    assert (found.kind, found.box) == (kind, wanted.box)
    assert found.probability == pytest.approx(wanted.probability, abs=1e-5)
    np.testing.assert_allclose(found.regions["sight"], wanted.regions["sight"], atol=1e-4)


def test_a_bar_that_misses_its_threshold_never_looks_as_if_it_reached_it(studio_of):
    studio = studio_of(photo(127, 128), {"a": WatchedPredictor()})  # 49.8 and 50.2 percent; the threshold is at 50
    shown = views.bars(studio.new_session(), studio)
    rows = re.findall(r'class="ic-row( ic-below)?".*?ic-name">(.*?)<.*?ic-value">(.*?)<', shown, re.DOTALL)
    values = {name: (bool(below), value) for below, name, value in rows}
    assert values["class 0"] == (True, "49.8")
    assert values["class 1"] == (False, "50")
    assert values["class 3"] == (True, "25")


def test_the_map_s_colours_are_told_in_the_words_of_every_other_picture(studio_of):
    studio = studio_of(photo(200, 100), {"a": WatchedPredictor()})
    shown = views.figure(studio.new_session(), studio)
    legend = re.search(r'class="ic-legend">(.*?)</span></span>', shown, re.DOTALL)[1]
    assert tuple(re.sub("<[^>]+>", " ", legend).split()) == LEGEND


class Reading(WatchedPredictor):
    """Reads words: red photos and the word "red" speak for the first class."""

    channels = alone = ("image", "text")

    def __init__(self):
        super().__init__("posts")
        self.card = self.card.model_copy(update={"method": "posts", "maps": []})

    def predict(self, images=None, *, texts=None, **options):
        found = np.full((len(texts), CLASSES), 0.25, dtype=np.float32)
        found[:, 0] = [0.9 if text and "red" in text else 0.1 for text in texts]
        conflicts = [
            None if not text else Conflict(0.5, {"class 0": (0.1, 0.9)}) if "red" in text else Conflict(0.02, {})
            for text in texts
        ]
        return [
            Prediction(row, self.thresholds, self.taxonomy, "post", conflict=one)
            for row, one in zip(found, conflicts, strict=True)
        ]

    def explain_words(self, text, label):
        words = [(word, 1.5 if word == "red" else -0.5) for word in text.split()]
        return SimpleNamespace(label=label, probability=0.9, words=words)


def test_a_change_waits_until_the_one_before_it_is_drawn(studio_of):
    slow = WatchedPredictor()
    studio = studio_of(photo(10), {"slow": slow, "other": WatchedPredictor()})
    page, session = Callbacks(None, studio), copy.deepcopy(studio.new_session())
    slow.watched.gate.clear()
    first = threading.Thread(target=page._change, args=(session, lambda: None, ("strip",)))
    second = threading.Thread(
        target=page._change, args=(session, lambda: page.choose_model(session, "other"), ("strip",))
    )
    first.start()
    assert slow.watched.entered.wait(60)
    second.start()
    second.join(0.3)
    assert session.model == "slow"  # what is drawn meanwhile is of one model
    slow.watched.gate.set()
    first.join()
    second.join()
    assert session.model == "other"


def test_what_is_refused_leaves_the_session_as_it_was(studio_of, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    full = WatchedPredictor()
    studio = studio_of(photo(10), {"lite": WatchedPredictor(), "other": full}, capacity=2)
    (tmp_path / "b.png").write_bytes(photo(20))
    page, session = Callbacks(None, studio), copy.deepcopy(studio.new_session())
    page.keep_labels(session, ["class 1"])
    studio.predict(session)
    before = session.remember()
    full.watched.gate.clear()
    waiting = studio.batcher.submit_all([(photo(1), None), (photo(2), None)], model="other")

    def come():
        files = [{"path": str(tmp_path / "b.png"), "name": "mine.png"}]
        return page._change(session, lambda: page.add_photos(session, files, 0), ("drop", "strip"))

    notice, strip = come()
    assert session.photos == before.photos  # else the same photo dropped again would be there twice
    assert session.kept == before.kept
    assert "too many photos are waiting" in notice  # and no longer "Scoring 1 …"
    assert strip == gr.skip()
    for change in (lambda: page.choose_model(session, "other"), lambda: page.choose_model(session, "other")):
        page._change(session, change, ("strip",))
        assert session.model == "lite"
    full.watched.gate.set()
    for one in waiting:
        one.result()
    assert "mine.png" in come()[1]
    page._change(session, lambda: page.choose_model(session, "other"), ("strip",))
    assert session.model == "other"


def test_corrections_of_the_examples_stay_where_no_photo_takes_their_place(studio_of, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    studio = studio_of(photo(10), {"lite": WatchedPredictor()})
    page, session = Callbacks(None, studio), copy.deepcopy(studio.new_session())
    page.keep_labels(session, ["class 1"])
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    broken = {"path": str(tmp_path / "broken.jpg"), "name": "broken.jpg"}
    page.add_photos(session, [broken], 0)
    assert session.notice.startswith("0 photos added; broken.jpg is not an image")
    assert session.kept == {"lite": {0: ("class 1",)}}
    page.add_photos(session, [broken, {"path": str(tmp_path / "a.png"), "name": "mine.png"}], 0)
    assert [one.name for one in session.photos] == ["mine.png"]
    assert session.kept == {}
    page.add_photos(session, [{"path": str(tmp_path / "a.png"), "name": f"{place}.png"} for place in range(2)], 0)
    assert session.place == 1
    page.add_photos(session, [broken], 0)
    assert session.place == 1  # nothing came: the visitor stays where they were
    assert len(session.photos) == 3


def test_the_table_to_download_goes_with_the_photos(studio_of, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "files"))
    studio = studio_of(photo(10), {"lite": WatchedPredictor()})
    with gr.Blocks() as blocks:
        page = Callbacks(lay_out(["lite"]), studio)
    session = copy.deepcopy(studio.new_session())
    page.keep_labels(session, ["class 1"])
    shown = page._change(session, lambda: None, ("download",))[0]
    assert Path(shown["value"]).read_text() == "image,labels\na.png,class 1\n"
    delete_files_created_by_app(blocks, None)  # as Gradio does when its server ends
    assert not [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    assert not Path(shown["value"]).exists()


def test_a_caption_is_read_and_its_words_are_shown(studio_of):
    studio = studio_of(photo(10), {"posts": Reading(), "plain": WatchedPredictor()})
    session = studio.new_session()
    assert studio.predict(session)[0].top(1)[0][0] != "class 0"
    assert views.words(session, studio) == ""
    assert "Photo and words" not in views.bars(session, studio)
    session.captions[0] = "a quiet day"
    assert "Photo and words agree (conflict 0.02, at most 1)." in views.bars(session, studio)
    session.captions[0] = "a red <b>"
    told = views.bars(session, studio).replace("\N{NO-BREAK SPACE}", " ")
    assert "Photo and words disagree: class 0, 10 % by the photo and 90 % by the words (conflict 0.50" in told
    assert studio.predict(session)[0].labels == ["class 0"]
    shown = views.words(session, studio)
    assert shown.count("ic-for") == 2  # the word and the legend
    assert "&lt;b&gt;" in shown
    assert "90 %" in shown
    session.model = "plain"  # reads photos alone: the caption waits
    assert "text" not in studio.reader(session).reads
    assert views.words(session, studio) == ""
    assert studio.predict(session)[0].error is None
