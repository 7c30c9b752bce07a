"""Text in pictures, recognised by RapidOCR without a network."""

import socket
from dataclasses import replace

import pytest
from PIL import Image, ImageDraw, ImageFont

from intclip.data import ocr
from intclip.data.ocr import add_words, add_words_to, read_words
from intclip.data.tabular import load_table
from intclip.errors import ImageError, MissingExtraError

LINES = ("ONE DOES NOT SIMPLY", "WALK INTO A MEETING")


@pytest.fixture(scope="module")
def meme(tmp_path_factory):
    """A picture with a line of text at the top and one at the bottom."""
    picture = Image.new("RGB", (640, 420), (70, 90, 60))
    draw = ImageDraw.Draw(picture)
    for line, top in zip(LINES, (20, 350), strict=True):
        draw.text((30, top), line, fill="white", font=ImageFont.load_default(44))
    path = tmp_path_factory.mktemp("memes") / "meme.png"
    picture.save(path)
    return path


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("somebody asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    ocr._engine.cache_clear()


def letters(text: str) -> str:
    return "".join(letter for letter in text.upper() if letter.isalpha())


def test_the_words_are_read_from_the_top_without_a_network(meme, offline):
    assert letters(read_words(meme)) == letters("".join(LINES))
    assert letters(read_words(meme.read_bytes())) == letters("".join(LINES))


def test_a_picture_without_words_has_none():
    assert read_words(Image.new("RGB", (200, 200), (120, 80, 40))) == ""


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(ImageError, match="broken"):
        read_words(tmp_path / "broken.jpg")


def test_words_follow_the_text_of_the_post(monkeypatch, tmp_path):
    monkeypatch.setattr(ocr, "read_words", lambda photo: {"a": "HELLO", "b": ""}[photo])
    found = list(add_words(["a", "a", "b", "b", None], ["hi", None, "hi", None, "hi"]))
    assert found == ["hi HELLO", "HELLO", "hi", None, "hi"]

    def broken(photo):
        raise ImageError("broken")

    monkeypatch.setattr(ocr, "read_words", broken)
    assert list(add_words(["a"], ["hi"])) == ["hi"]


def test_a_dataset_has_the_words_of_its_pictures(meme, monkeypatch):
    table = meme.parent / "posts.csv"
    table.write_text("image,text,labels\nmeme.png,look,joy\nmeme.png,,fear\n")
    dataset = load_table(table)
    monkeypatch.setattr(ocr, "read_words", lambda photo: photo.name)
    told = []
    found = add_words_to(dataset, ["train"], lambda *progress: told.append(progress))
    assert [sample.text for sample in found.splits["train"]] == ["look meme.png", "meme.png"]
    assert [progress[1:] for progress in told] == [(1, 2), (2, 2)]
    assert replace(found, splits=dataset.splits) == dataset
    assert next(sample.text for sample in dataset.splits["train"]) == "look"  # the dataset itself is unchanged


def test_without_the_library_one_line_says_what_to_install(meme, monkeypatch):
    import sys

    ocr._engine.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingExtraError, match=r"intclip\[ocr\]"):
        read_words(meme)


def test_a_model_of_photos_alone_refuses_to_read_words(meme, monkeypatch, capsys):
    import sys

    from intclip.cli.main import main

    monkeypatch.setattr(sys, "argv", ["intclip", "predict", str(meme), "--read-text", "--engine", "torch"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "--read-text" in capsys.readouterr().err
