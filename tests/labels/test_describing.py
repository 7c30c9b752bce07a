"""Descriptions by a vision-language model: requests, cache, costs, failures, and the notice before photos are sent."""

import base64
import io
import json

import pytest
from fake_llm import says, serving, status
from PIL import Image
from typer.testing import CliRunner

from intclip.cli.main import app
from intclip.data.describing import Price, describe_photos, is_local, photo_prompt
from intclip.errors import IntclipError, LanguageModelError, StorageError
from intclip.labels import load_taxonomy


@pytest.fixture
def server():
    with serving(says("A red square.\nIt is calm.")) as running:
        yield running


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        image = Image.new("RGB", (1600, 20 * i + 400), (60 * i, 0, 0))
        exif = image.getexif()
        exif[0x010F] = "secret camera"
        image.save(folder / f"{i}.jpg", exif=exif)
    return sorted(folder.iterdir())


def test_a_photo_goes_small_and_without_its_data(server, make_client, photos):
    (found,) = describe_photos(photos[:1], make_client())
    assert found.text == "A red square. It is calm."
    text, image = server.requests[0]["messages"][0]["content"]
    content = base64.b64decode(image["image_url"]["url"].partition(",")[2])
    assert b"secret camera" not in content
    assert max(Image.open(io.BytesIO(content)).size) == 768
    prompt = text["text"].casefold()
    assert prompt == photo_prompt().casefold()
    assert not [name for name in load_taxonomy("intentonomy").names if name.casefold() in prompt]
    assert "Natural beauty" in photo_prompt(["Natural beauty"])


def test_order_cache_and_resumption(server, make_client, photos):
    first = list(describe_photos(photos[:3], make_client(), workers=3))
    assert [one.photo for one in first] == [str(photo) for photo in photos[:3]]
    again = list(describe_photos(photos, make_client(), workers=3))
    assert [one.answer.cached for one in again] == [True, True, True, False]
    assert len(server.requests) == 4


def test_a_broken_photo_takes_its_place(server, make_client, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no photo")
    found = list(describe_photos([photos[0], broken, photos[1]], make_client(), workers=1))
    assert [one.error is None for one in found] == [True, False, True]
    assert "broken.jpg" in found[1].error


def test_an_overloaded_endpoint_is_asked_again(server, make_client, photos):
    server.script = [status(503), status(429)]
    (found,) = describe_photos(photos[:1], make_client(), workers=1)
    assert found.error is None
    assert len(server.requests) == 3


def test_three_refusals_in_a_row_stop_the_run(server, make_client, photos):
    server.otherwise = status(401)
    seen = []
    with pytest.raises(LanguageModelError, match="API key"):
        seen.extend(describe_photos([*photos, *photos], make_client(), workers=1))
    assert len(server.requests) <= 6


def test_the_cost_cap_holds_over_threads_and_cached_answers_are_free(server, make_client, photos):
    price = Price(per_photo=1.0, cap=2.0)
    found = list(describe_photos(photos, make_client(), workers=4, price=price))
    assert sum(one.error is None for one in found) == len(server.requests) == 2
    assert "cost limit reached; raise --max-cost" in next(one.error for one in found if one.error)
    rest = list(describe_photos(photos, make_client(), workers=4, price=price))
    assert all(one.error is None for one in rest)
    assert len(server.requests) == 4
    assert Price.from_tokens(1.0, 2.0, None).per_photo == pytest.approx((1200 + 600) / 1e6)


def invoke(*words):
    return CliRunner().invoke(app, ["describe", *map(str, words)], catch_exceptions=False, standalone_mode=False)


def test_the_command_writes_a_table_that_fit_reads(server, photos, tmp_path):
    out = tmp_path / "posts.jsonl"
    result = invoke(photos[0].parent, "--base-url", server.url, "--model", "fake", "--out", out)
    assert "4 descriptions, 0 of them from the cache" in result.stdout
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {"image": "photos/0.jpg", "text": "A red square. It is calm."}
    result = invoke(photos[0].parent, "--base-url", server.url, "--model", "fake", "--out", out, "--json")
    facts = json.loads(result.stdout)
    assert (facts["described"], facts["asked"], facts["cached"]) == (4, 0, 4)
    table = tmp_path / "posts.csv"
    invoke(photos[0], "--base-url", server.url, "--model", "fake", "--out", table)
    assert table.read_text().splitlines()[0] == "image,text"


@pytest.mark.parametrize("name", ["posts.jsonl", "posts.csv"])
def test_a_table_that_was_labelled_is_not_written_over(server, photos, tmp_path, name):
    out = tmp_path / name
    text = (
        '{"image": "photos/0.jpg", "text": "Mine."}\n{"image": "photos/1.jpg", "text": "Yours.", "labels": ["sea"]}\n'
    )
    text = text if name.endswith("jsonl") else "image,text,labels\nphotos/0.jpg,Mine.,sea\n"
    out.write_text(text)
    with pytest.raises(StorageError, match=r"labels.*--out"):
        invoke(photos[0].parent, "--base-url", server.url, "--model", "fake", "--out", out)
    assert out.read_text() == text
    assert not server.requests


def test_no_photo_leaves_this_machine_without_yes(photos, tmp_path, capsys):
    with pytest.raises(IntclipError, match="--yes"):
        invoke(photos[0], "--base-url", "http://far.invalid/v1", "--model", "m", "--out", tmp_path / "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
    assert is_local("http://localhost:1/v1")
    assert is_local("http://127.0.0.1:1/v1")
    assert is_local("http://[::1]:1/v1")
    assert not is_local("http://localhost.example.org/v1")
    assert not is_local("http://127.evil.example/v1")
    assert not is_local("")


def test_what_was_described_is_written_when_the_endpoint_goes(server, photos, tmp_path):
    server.script = [says("one")]
    server.otherwise = status(401)
    out = tmp_path / "posts.jsonl"
    with pytest.raises(LanguageModelError, match="API key"):
        invoke(photos[0].parent, "--base-url", server.url, "--model", "fake", "--out", out, "--workers", 1)
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == ["one"]


def test_without_a_description_no_table_is_claimed(server, tmp_path, capsys):
    (tmp_path / "no.jpg").write_text("hello")
    out = tmp_path / "posts.jsonl"
    with pytest.raises(IntclipError, match=r"1 of 1 photos .*posts\.jsonl.*no\.jpg"):
        invoke(tmp_path / "no.jpg", "--base-url", server.url, "--model", "fake", "--out", out)
    assert not out.exists()
    assert capsys.readouterr().out == ""


def test_wrong_options_in_one_line(server, photos, tmp_path):
    with pytest.raises(IntclipError, match=r"jsonl or \.csv"):
        invoke(photos[0], "--model", "m", "--base-url", server.url, "--out", tmp_path / "o.txt")
    with pytest.raises(IntclipError, match="--prices"):
        invoke(
            photos[0],
            "--model",
            "m",
            "--base-url",
            server.url,
            "--out",
            tmp_path / "o.csv",
            "--max-cost",
            1,
        )
