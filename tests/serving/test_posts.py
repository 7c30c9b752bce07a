"""Posts through the real service: photo, text and both, with a bundle of `intclip fit`."""

import base64
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest
from server_process import serving

import intclip
from intclip.cli.main import main
from intclip.serving.client import Client, ServiceError
from labelled_posts import KINDS, write_posts
from tiny_models import tiny_known

SEA, FIRE = (KINDS[kind][1] for kind in KINDS)
SERVE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from fakes import TinyBackbone
from intclip.backbones import registry
from intclip.cli.main import main
registry.BUILDERS["tiny"] = lambda name, checkpoint, split: TinyBackbone()
main()
"""
"""`intclip` with the tiny backbone."""


@pytest.fixture(scope="module", autouse=True)
def tiny():
    with tiny_known():
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Labelled posts, and the bundle "model" fitted on both channels."""
    folder = tmp_path_factory.mktemp("posts")
    posts = write_posts(folder, 20)
    words = ["fit", str(posts), "--out", str(folder / "model"), "--folds", "0"]
    words += ["--backbone", "tiny", "--text-encoder", "backbone"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as leaving:
        patch.setattr(sys, "argv", ["intclip", *words])
        main()
    assert not leaving.value.code
    return folder


@pytest.fixture(scope="module")
def service(home):
    with serving(home, "-c", SERVE, "serve", "--model", home / "model", "--port", 0) as (_, url, _):
        yield url


def test_photo_words_and_both_are_what_the_predictor_says(home, service):
    sea, fire = home / "0.png", home / "1.png"
    photos, texts = [sea, None, fire, sea], [None, FIRE, SEA, SEA]
    direct = intclip.load(home / "model").predict(photos, texts=texts)
    with Client(service) as client:
        form = client.predict(photos, texts=texts).results
        assert [one.source for one in form] == ["0.png", "text 2", "1.png", "0.png"]
        apart = [client.predict(sea), client.predict(texts=FIRE), client.predict(fire, texts=SEA)]
        info = client.models()[0]
    assert (info.reads, info.evidence) == (["image", "text"], True)
    coded = [None if photo is None else base64.b64encode(photo.read_bytes()).decode() for photo in photos]
    asked = httpx2.post(f"{service}/v1/predict", json={"images": coded, "texts": texts}, timeout=90)
    assert asked.status_code == 200
    answers = (
        [one.model_dump() for one in form],
        asked.json()["results"],
        [one.results[0].model_dump() for one in apart],
    )
    for answer in answers:
        for one, expected in zip(answer, direct, strict=False):
            assert one["scores"] == pytest.approx(expected.scores, abs=1e-5)
            assert one["labels"] == expected.labels
            if expected.conflict is None:
                assert (one["conflict"], one["disputed"]) == (None, {})
                continue
            assert one["conflict"] == pytest.approx(expected.conflict.score, abs=1e-4)
            assert one["disputed"].keys() == expected.conflict.disputed.keys()
            for name, pair in expected.conflict.disputed.items():
                assert one["disputed"][name] == pytest.approx(pair, abs=1e-4)
    assert [one.conflict is None for one in form] == [True, True, False, False]
    assert form[2].conflict > form[3].conflict  # the photo shows fire, the words are about the sea
    assert set(form[2].disputed) == {"sea", "fire"}


def test_wrong_posts_are_refused_in_one_line(home, service):
    with Client(service) as client:
        for photos, texts, said in (
            ([home / "0.png"], [SEA, FIRE], "1 images.* 2 texts"),
            ([home / "0.png", home / "1.png"], [SEA], "2 images.* 1 texts"),
            ([None], [" "], "neither photo nor text"),
            ([None], ["sea " * 1251], "5004.*5000"),
        ):
            with pytest.raises(ServiceError, match=said) as refusal:
                client.predict(photos, texts=texts)
            assert refusal.value.status == 422
            assert "\n" not in str(refusal.value)
        bad = client.predict([b"no photo", home / "0.png"], texts=[SEA, SEA]).results
        assert "image 1 is not a supported image" in bad[0].error
        assert bad[1].error is None


def test_evidence_in_a_post_s_photo(home, service):
    direct = intclip.load(home / "model").explain(home / "0.png", "sea")
    with Client(service) as client:
        found = client.explain(home / "0.png", "sea")
        fine = client.explain(home / "0.png", "sea", kind="fine")
    assert found.branches == fine.branches == ["fused"]
    np.testing.assert_allclose(found.regions["fused"], direct.regions["fused"], atol=1e-4)
