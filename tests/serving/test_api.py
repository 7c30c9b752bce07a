"""The API in one process: answers, errors, and independence of requests."""

import asyncio
import base64
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import HTTPException
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import Request
from watched import WatchedPredictor, photo

from intclip.inference.predictor import Predictor
from intclip.serving.api import create_api
from intclip.serving.bodies import Uploads
from intclip.serving.settings import Settings


@pytest.fixture
def serve(watched):
    """Start an API with the watched model and some settings."""
    opened = []

    def start(models=None, **settings):
        client = TestClient(create_api(models or {"a": watched}, Settings(**settings)), raise_server_exceptions=False)
        opened.append(client.__enter__())
        return client

    yield start
    watched.watched.gate.set()
    for client in opened:
        client.__exit__(None, None, None)


def files(*contents, field="images"):
    return [(field, (f"{i}.png", content, "image/png")) for i, content in enumerate(contents)]


def coded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def detail(response) -> str:
    found = response.json()["detail"]
    assert isinstance(found, str)
    assert "\n" not in found
    return found


def test_a_form_and_json_get_the_same_answer_as_the_predictor(serve, watched):
    photos = [photo(255, 10), photo(20, 255, size=(40, 31), kind="JPEG")]
    client = serve()
    form = client.post("/v1/predict", files=files(*photos))
    body = client.post("/v1/predict", json={"images": [coded(one) for one in photos]})
    assert form.status_code == body.status_code == 200
    assert [one["source"] for one in form.json()["results"]] == ["0.png", "1.png"]
    assert [one["source"] for one in body.json()["results"]] == ["image 1", "image 2"]
    for answer in (form.json(), body.json()):
        assert (answer["model"], answer["taxonomy"], answer["level"]) == ("a", "tiny", "class")
        for one, direct in zip(answer["results"], watched.predict(photos), strict=True):
            assert one["labels"] == direct.labels
            assert one["scores"] == pytest.approx(direct.scores, abs=1e-6)
    assert form.json()["results"][0]["labels"] == ["class 0"]


def test_a_data_url_a_threshold_and_a_level(serve):
    url = "data:image/png;base64," + coded(photo(40, 200, 10))
    asked = {"images": [url], "threshold": 0.1, "level": "group", "model": "a"}
    one = serve().post("/v1/predict", json=asked).json()["results"][0]
    assert one["labels"] == ["class 0", "class 1", "class 3", "class 4"]
    assert one["scores"] == pytest.approx({"group 0": 0.25, "group 1": 200 / 255}, abs=1e-6)  # the larger of children


def test_a_bad_photo_among_good_ones_has_its_place_and_alone_it_is_refused(serve):
    client = serve(max_pixels=500)
    answer = client.post("/v1/predict", files=files(photo(255), b"\x89PNG\r\n\x1a\n", photo(1, size=(99, 99))))
    good, cut, large = answer.json()["results"]
    assert answer.status_code == 200
    assert (good["error"], good["labels"]) == (None, ["class 0"])
    assert cut["scores"] is None
    assert cut["error"].startswith("1.png ")
    assert "2.png is too large: 99 × 99" in large["error"]
    alone = client.post("/v1/predict", json={"images": [coded(b"<svg/>")] * 2})
    assert alone.status_code == 422
    assert detail(alone).startswith("image 1 is not a supported image")
    assert "(and 1 more" in detail(alone)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "the request has no photo"),
        ({"images": ["https://example.org/a.jpg"]}, "images.0: must be the base64 .* URLs are not fetched"),
        ({"images": ["a"]}, "must be the base64"),
        ({"images": [3]}, "images.0: must be the base64 of a photo file"),
        ({"images": [None]}, "neither photo nor text"),
        ({"images": ["AAAA"] * 5}, "5 photos in one request; .*at most 4"),
        ({"images": ["AAAA"], "texts": ["a", "b"]}, "1 images and 2 texts"),
        ({"images": ["AAAA"], "texts": ["a"]}, "uses only photos"),
        ({"images": ["AAAA"], "url": "http://x"}, "unknown field 'url'"),
        ({"images": ["AAAA"], "threshold": "0.5"}, "threshold: .* number"),
        ({"images": ["AAAA"], "threshold": 1.5}, "threshold: .* less than or equal to 1"),
        ({"images": ["AAAA"], "level": "depth"}, "no level 'depth'.*class.*group"),
        ({"images": ["AAAA"], "model": "b"}, "unknown model 'b'; served models: a"),
        ([], "object"),
    ],
)
def test_wrong_json_is_refused_in_one_line(serve, body, said):
    answer = serve(max_photos=4).post("/v1/predict", json=body)
    assert answer.status_code == 422
    assert re.search(said, detail(answer)), detail(answer)


def test_other_media_types_and_broken_bodies_are_refused(serve):
    client = serve(max_photos=2)
    assert client.post("/v1/predict", content=photo(1), headers={"Content-Type": "image/png"}).status_code == 415
    assert client.post("/v1/predict").status_code == 415
    broken = client.post("/v1/predict", content=b'{"images": [', headers={"Content-Type": "application/json"})
    assert broken.status_code == 422
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for refused in (
        client.post("/v1/predict", content=b"nonsense", headers=form),
        client.post("/v1/predict", content=b"", headers={"Content-Type": "multipart/form-data"}),
        client.post("/v1/predict", files=files(*[photo(1)] * 3)),
    ):
        assert refused.status_code == 400
        assert "let curl -F or a library build the form and its Content-Type, with at most 2 photos" in detail(refused)
    twice = client.post("/v1/predict", files=files(photo(1)), data={"model": ["a", "a"]})
    assert "model is given twice" in detail(twice)
    assert client.get("/v1/predict").status_code == 405


def test_fields_in_the_address_are_refused_not_passed_over(serve):
    answer = serve().post("/v1/predict?threshold=0.9&model=b", files=files(photo(255)))
    assert answer.status_code == 422
    assert detail(answer) == "'threshold' is in the URL's query; send it as a field of the body"


def test_no_answer_repeats_what_was_sent(serve):
    for body in ({"images": ["secret?"]}, {"images": [], "threshold": "secret"}, {"secret": {"a": "secret"}}):
        answer = serve().post("/v1/predict", json=body)
        assert answer.status_code == 422
        assert "secret" not in detail(answer).replace("'secret'", "")


def test_a_request_over_the_limit_is_refused_with_and_without_its_length(serve):
    client = serve(max_body_bytes=1000)
    body = json.dumps({"images": ["A" * 2000]}).encode()
    headers = {"Content-Type": "application/json"}
    whole = client.post("/v1/predict", content=body, headers=headers)
    assert whole.status_code == 413
    assert "larger than 0.001 MB" in detail(whole)
    chunks = (body[i : i + 100] for i in range(0, len(body), 100))
    chunked = client.post("/v1/predict", content=chunks, headers=headers)
    assert chunked.status_code == 413
    assert detail(chunked)


def test_too_many_bytes_at_once_are_refused_and_forgotten(serve):
    client = serve(max_body_bytes=1000, max_bytes_inside=1000)
    small = {"images": [coded(photo(255))]}
    for _ in range(20):  # together far above the limit, one after another below it
        assert client.post("/v1/predict", json=small).status_code == 200


def test_a_full_queue_answers_429_and_others_are_served(serve, watched):
    client = serve(capacity=2, max_photos=2)
    watched.watched.gate.clear()
    kept: list = []
    waiting = threading.Thread(
        target=lambda: kept.append(client.post("/v1/predict", files=files(photo(255), photo(1))))
    )
    waiting.start()
    while client.app.state.batcher.inside < 2:
        time.sleep(0.005)
    refused = client.post("/v1/predict", files=files(photo(3)))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    # The event loop is free while the model is stuck.
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/v1/models").status_code == 200
    assert "intclip_photos_inside 2.0" in client.get("/metrics").text
    assert waiting.is_alive()
    watched.watched.gate.set()
    waiting.join(60)
    assert kept[0].status_code == 200
    assert client.post("/v1/predict", files=files(photo(3))).status_code == 200


def test_a_request_that_waits_too_long_is_given_up(serve, watched):
    client = serve(answer_seconds=0.2)
    watched.watched.gate.clear()
    late = client.post("/v1/predict", files=files(photo(1)))
    assert late.status_code == 503
    assert "no answer within 0.2 s" in detail(late)
    watched.watched.gate.set()
    assert client.post("/v1/predict", files=files(photo(1))).status_code == 200


def test_an_unforeseen_error_is_500_without_its_text(serve, watched, caplog):
    client = serve()
    watched.watched.failing = True
    answer = client.post("/v1/predict", files=files(photo(1)))
    assert answer.status_code == 500
    assert "broke" not in answer.text
    assert answer.headers["X-Request-Id"] in detail(answer)
    watched.watched.failing = False
    assert client.post("/v1/predict", files=files(photo(1))).status_code == 200


def test_a_photo_that_breaks_the_model_spoils_neither_its_request_nor_its_neighbours(serve, watched, caplog):
    client = serve()
    watched.watched.poison = 66
    watched.watched.gate.clear()
    asked = {"alone": [1], "mixed": [2, 66, 3], "others": [4, 5], "guilty": [66], "both bad": [66, None]}
    with ThreadPoolExecutor(len(asked)) as pool:
        sent = {
            name: pool.submit(
                client.post,
                "/v1/predict",
                files=files(*(b"no photo" if level is None else photo(level) for level in levels)),
            )
            for name, levels in asked.items()
        }
        batcher = client.app.state.batcher
        while sum(watched.watched.asked) + len(batcher._queue) < 8:  # the non-photo is answered already
            time.sleep(0.005)
        watched.watched.gate.set()
        answers = {name: waiting.result(60) for name, waiting in sent.items()}
    assert max(watched.watched.asked) > 1
    for name in ("alone", "mixed", "others"):
        assert answers[name].status_code == 200
        for level, one in zip(asked[name], answers[name].json()["results"], strict=True):
            if level == 66:
                assert (one["scores"], one["labels"]) == (None, [])
                assert one["error"] == "1.png: the model failed on this one; see the log"
            else:
                assert one["error"] is None
                assert one["scores"]["class 0"] == pytest.approx(level / 255)
    for name in ("guilty", "both bad"):  # none of their photos could be scored
        assert answers[name].status_code == 500
        assert answers[name].headers["X-Request-Id"] in detail(answers[name])
    lines = [line for line in caplog.messages if "the model failed on a photo" in line]
    assert len(lines) == 3
    assert all(line.startswith("the model failed on a photo: RuntimeError at watched.py:") for line in lines)
    assert "the engine broke" not in caplog.text  # an engine's message may quote its input
    metrics = client.get("/metrics").text
    assert "intclip_model_failures_total 3.0" in metrics
    assert "intclip_unreadable_photos_total 1.0" in metrics
    assert client.app.state.batcher.inside == 0


def test_evidence_and_its_picture(serve, watched):
    client = serve()
    file = photo(200, 100, 50, size=(2200, 1100), kind="JPEG")
    asked = client.post("/v1/explain", files=files(file, field="image"), data={"label": "CLASS 1", "picture": "true"})
    found = asked.json()
    direct = watched.explain(file, "class 1")
    assert asked.status_code == 200
    assert found["label"] == "class 1"
    assert found["box"] == {"left": 550, "top": 0, "right": 1650, "bottom": 1100}
    assert found["branches"] == ["fused"]
    assert found["regions"]["fused"] == [pytest.approx(row, abs=1e-6) for row in direct.regions["fused"].tolist()]
    with Image.open(io.BytesIO(base64.b64decode(found["picture"]))) as drawn:
        assert drawn.size == (1024, 512)
    plain = client.post("/v1/explain", json={"image": coded(file), "label": "class 1"}).json()
    assert plain["picture"] is None
    assert plain["regions"] == found["regions"]
    side = len(plain["regions"]["fused"])
    fine = client.post("/v1/explain", json={"image": coded(file), "label": "class 1", "kind": "fine"}).json()
    wanted = watched.explain(file, "class 1", kind="fine").regions["fused"]
    assert wanted.shape == (4 * side, 4 * side)
    assert fine["regions"]["fused"] == [pytest.approx(row, abs=1e-6) for row in wanted.tolist()]
    assert fine["probability"] == found["probability"]
    wrong = client.post("/v1/explain", json={"image": coded(file), "label": "class 9"})
    assert wrong.status_code == 422
    assert "did you mean" in detail(wrong)
    bad = client.post("/v1/explain", files=files(b"no photo", field="image"), data={"label": "class 1"})
    assert (bad.status_code, detail(bad)[:30]) == (422, "0.png is not a supported image")


def test_models_and_taxonomies(serve, watched):
    other = WatchedPredictor("other")
    client = serve({"a": watched, "b": other})
    models = client.get("/v1/models").json()
    assert [(one["name"], one["default"], one["reads"]) for one in models] == [
        ("a", True, ["image"]),
        ("b", False, ["image"]),
    ]
    (labels,) = client.get("/v1/taxonomies").json()
    assert labels["models"] == ["a", "b"]
    assert labels["levels"]["group"] == ["group 0", "group 1"]
    assert labels["thresholds"]["b"]["class 4"] == 0.5
    assert labels["channel_thresholds"] == {}
    answer = client.post("/v1/predict", files=files(photo(255)), data={"model": "b"}).json()
    assert answer["model"] == "b"
    assert other.watched.batches[-1] == 1


def test_thresholds_of_posts_with_one_channel(serve, watched):
    """Regression: the app showed photos without a caption at the thresholds of posts with both."""
    alone = [round(0.1 * (place + 1), 1) for place in range(len(watched.taxonomy))]
    change = {"channels": ["image", "text"], "channel_thresholds": {"image": alone}}
    both = Predictor(watched.card.model_copy(update=change), engine="torch", build=lambda: None)
    both.engine = watched.engine
    (labels,) = serve({"a": both}).get("/v1/taxonomies").json()
    assert set(labels["thresholds"]["a"].values()) == {0.5}
    assert list(labels["channel_thresholds"]["a"]["image"].values()) == pytest.approx(alone)
    assert set(labels["channel_thresholds"]["a"]["text"].values()) == {0.5}


def test_the_key_is_asked_before_the_body_and_probes_need_none(serve):
    client = serve(api_key="let-me-in", max_body_bytes=1000)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic let-me-in"}):
        refused = client.post("/v1/predict", content=b"x" * 900, headers={"Content-Type": "text/plain"} | headers)
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    key = {"Authorization": "Bearer let-me-in"}
    assert client.post("/v1/predict", files=files(photo(255)), headers=key).status_code == 200


def test_other_sites_may_ask_only_when_told(serve):
    asked = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in serve().get("/v1/models", headers=asked).headers
    allowed = serve(cors_origins=("https://a.example",))
    assert allowed.get("/v1/models", headers=asked).headers["access-control-allow-origin"] == "https://a.example"
    assert (
        "access-control-allow-origin" not in allowed.get("/v1/models", headers={"Origin": "https://b.example"}).headers
    )


def test_readiness_follows_the_life_of_the_service(watched):
    api = create_api({"a": watched})
    before = TestClient(api)
    assert before.get("/readyz").status_code == 503
    with TestClient(api) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
    assert before.get("/readyz").json() == {"status": "stopping"}
    assert before.post("/v1/predict", files=files(photo(1))).status_code == 503


def test_metrics_count_requests_batches_and_failures(serve):
    client = serve()
    client.post("/v1/predict", files=files(photo(1), b"no photo"))
    client.get("/nowhere/secret")
    text = client.get("/metrics").text
    assert 'intclip_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'intclip_requests_total{route="other",status="404"} 1.0' in text
    assert "intclip_unreadable_photos_total 1.0" in text
    assert "secret" not in text


def test_bytes_of_all_requests_together_are_bounded():
    def request(size):
        async def receive():
            return {"type": "http.request", "body": b"x" * size, "more_body": True}

        return Request({"type": "http", "headers": []}, receive)

    async def scenario():
        uploads = Uploads(most=100, most_together=150)
        with uploads.counted(request(80)) as first:
            await first.receive()
            with pytest.raises(HTTPException) as refusal, uploads.counted(request(80)) as second:
                await second.receive()
            assert (refusal.value.status_code, uploads.bytes) == (429, 80)
            assert refusal.value.headers["Retry-After"]
            with uploads.counted(request(60)) as third:
                await third.receive()
            with pytest.raises(HTTPException) as refusal:
                await first.receive()
            assert refusal.value.status_code == 413
        assert uploads.bytes == 0

    asyncio.run(scenario())
