"""The client of a chat endpoint: retries, errors, and a cache with the origin of answers."""

import json
import re
import time

import pytest
from fake_llm import cut_off, half_json, html, late, no_choices, says, status

from intclip.errors import LanguageModelError
from intclip.labels.llm import ChatClient, Retries

HELLO = [{"role": "user", "content": "hello"}]


def test_an_answer_and_its_provenance(server, make_client, tmp_path):
    server.script = [says("good day")]
    answer = make_client().ask(HELLO, max_tokens=7)
    assert (answer.text, answer.finish, answer.model, answer.served_by) == ("good day", "stop", "fake", "fake-1")
    assert answer.endpoint == server.url
    assert re.fullmatch(r"[0-9a-f]{64}", answer.prompt_hash)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", answer.date)
    assert not answer.cached
    request = server.requests[0]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("fake", 0, 7)
    assert request["messages"] == HELLO
    (file,) = (tmp_path / "answers").iterdir()
    record = json.loads(file.read_text())
    assert file.stem == record["prompt_hash"] == answer.prompt_hash
    assert {"model": "fake", "text": "good day", "messages": HELLO, "date": answer.date}.items() <= record.items()


def test_the_cache_answers_the_same_question_only(server, make_client):
    server.script = [says("one"), says("two"), says("three"), says("four")]
    first = make_client().ask(HELLO)
    again = make_client().ask(HELLO)
    assert again.cached
    assert (again.text, again.date) == (first.text, first.date)
    assert make_client().ask(HELLO, max_tokens=9).text == "two"
    assert make_client(temperature=0.5).ask(HELLO).text == "three"
    assert make_client(cache=None).ask(HELLO).text == "four"
    assert len(server.requests) == 4


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"text": "x"}', '{"prompt_hash": 1}'])
def test_a_damaged_cache_file_is_asked_for_anew(server, make_client, tmp_path, damage):
    server.script = [says("one"), says("two")]
    make_client().ask(HELLO)
    (file,) = (tmp_path / "answers").iterdir()
    file.write_text(damage)
    assert make_client().ask(HELLO).text == "two"
    assert make_client().ask(HELLO).cached


def test_a_forgotten_answer_is_asked_for_anew(server, make_client):
    server.script = [says("one"), says("two")]
    client = make_client()
    client.forget(client.ask(HELLO))
    assert client.ask(HELLO).text == "two"


@pytest.mark.parametrize(
    "fault",
    [
        status(429),
        status(500),
        status(502),
        status(503),
        status(408),
        cut_off,
        half_json,
        html,
        no_choices,
        says(None),
        says("  "),
    ],
    ids=["429", "500", "502", "503", "408", "cut off", "half JSON", "HTML", "no choices", "null", "blank"],
)
def test_faults_are_tried_again(server, make_client, fault):
    server.script = [fault, fault, says("at last")]
    assert make_client().ask(HELLO).text == "at last"
    assert len(server.requests) == 3


def test_a_late_answer_is_tried_again(server, make_client):
    server.script = [late(30), says("in time")]
    started = time.monotonic()
    assert make_client(timeout=0.2).ask(HELLO).text == "in time"
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(429, "slow down"), "HTTP 429: .*slow down"),
        (status(500), "HTTP 500"),
        (cut_off, "cannot be reached; is the server running"),
        (half_json, "gave no usable answer"),
        (html, "hotel"),
        (no_choices, "gave no usable answer \\(an answer without choices"),
        (says(""), "an empty answer"),
    ],
    ids=["429", "500", "cut off", "half JSON", "HTML", "no choices", "empty"],
)
def test_tries_are_bounded(server, make_client, tmp_path, fault, message):
    server.otherwise = fault
    with pytest.raises(LanguageModelError, match=message) as caught:
        make_client(attempts=3).ask(HELLO)
    assert len(server.requests) == 3
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "answers").exists()


def test_always_late(server, make_client):
    server.otherwise = late(30)
    with pytest.raises(LanguageModelError, match="--timeout"):
        make_client(attempts=2, timeout=0.1).ask(HELLO)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (status(401, "bad key sk-123"), "OPENAI_API_KEY"),
        (status(403), "OPENAI_API_KEY"),
        (status(404), "'fake'.*--model.*--base-url"),
        (status(400, "too long"), "HTTP 400: .*too long"),
        (status(429, "pay first", kind="insufficient_quota"), "HTTP 429: .*pay first"),
    ],
    ids=["401", "403", "404", "400", "quota"],
)
def test_refusals_are_not_tried_again(server, make_client, fault, message):
    server.otherwise = fault
    with pytest.raises(LanguageModelError, match=message):
        make_client().ask(HELLO)
    assert len(server.requests) == 1


def test_nobody_is_there():
    client = ChatClient("fake", base_url="http://127.0.0.1:9/v1", timeout=1, retries=Retries(2, 0.01))
    with pytest.raises(LanguageModelError, match=r"127\.0\.0\.1:9"):
        client.ask(HELLO)


def test_retry_after_is_honoured_up_to_a_limit(server, make_client):
    server.script = [status(429, retry_after="3600"), says("patience")]
    started = time.monotonic()
    assert make_client(longest=0.3).ask(HELLO).text == "patience"
    assert 0.3 <= time.monotonic() - started < 15


def test_the_key_travels_and_is_not_stored(server, make_client, tmp_path, monkeypatch):
    server.script = [says("one"), says("two")]
    make_client(api_key="secret-1").ask(HELLO)
    monkeypatch.setenv("OPENAI_API_KEY", "secret-2")
    make_client(cache=tmp_path / "other").ask(HELLO)
    assert server.keys == ["Bearer secret-1", "Bearer secret-2"]
    for file in tmp_path.rglob("*.json"):
        assert "secret" not in file.read_text()


def test_openai_itself_needs_a_key():
    with pytest.raises(LanguageModelError, match="OPENAI_API_KEY"):
        ChatClient("gpt")


def test_photos_can_be_sent_and_are_kept_as_digests(server, make_client, tmp_path):
    photo = {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,QUJD"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, photo]}]
    server.script = [says("a cat")]
    client = make_client()
    assert client.ask(messages).text == "a cat"
    assert client.ask(messages).cached
    assert server.requests[0]["messages"] == messages
    (file,) = (tmp_path / "answers").iterdir()
    kept = json.loads(file.read_text())["messages"][0]["content"]
    assert kept[0] == {"type": "text", "text": "what is this?"}
    assert set(kept[1]) == {"type", "sha256", "kind"}
    assert "QUJD" not in file.read_text()
