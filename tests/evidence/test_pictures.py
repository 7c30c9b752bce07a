"""Text in drawn pictures: every label is drawn with glyphs, or transliterated with a note."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from intclip.evidence import pictures
from intclip.evidence.evidence import make_evidence
from intclip.evidence.pictures import drawable, font, shorten
from intclip.reports.sheet import evidence_sheet

SCRIPTS = ["Café Zürich", "Ελπίδα", "радость", "自然风光", "حب", "אהבה", "🐶 собака", "喜び", "सुख"]


def boxes(text: str, size: int = 30) -> set[str]:
    """Letters of a text that are drawn as the sign for a missing glyph."""
    shown = drawable(text)
    drawn = font(size, shown)
    missing = bytes(drawn.getmask("\U0010fffe"))
    return {letter for letter in shown if not letter.isspace() and bytes(drawn.getmask(letter)) == missing}


@pytest.mark.parametrize("text", SCRIPTS)
def test_no_label_is_drawn_as_boxes(text):
    assert boxes(text) == set()
    assert boxes(shorten(text * 20, 200, 30)) == set()


@pytest.fixture
def no_fonts(monkeypatch):
    """Simulate a machine with no fonts besides Pillow's own."""
    load = ImageFont.truetype

    def truetype(source, *arguments, **options):
        if isinstance(source, str | Path):
            raise OSError("no such font")
        return load(source, *arguments, **options)  # Pillow's own, from memory

    monkeypatch.setattr(ImageFont, "truetype", truetype)
    caches = (pictures._font_for, pictures._font, pictures._transliterate)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


@pytest.mark.parametrize("text", SCRIPTS)
def test_without_fonts_it_is_transliterated_and_said(text, no_fonts, caplog):
    with caplog.at_level(logging.INFO, logger="intclip"):
        shown = drawable(text)
        drawable(text)
    assert shown.isascii()
    assert shown.strip("?")
    assert boxes(text) == set()
    (record,) = caplog.records
    assert repr(text) in record.getMessage()
    assert repr(shown) in record.getMessage()


def test_ascii_needs_no_other_font(no_fonts, caplog):
    assert drawable("In love with animals") == "In love with animals"
    assert not caplog.records


def sheet(size: tuple[int, int], label: str = "joy") -> np.ndarray:
    regions = {"sight": np.arange(49, dtype=np.float32).reshape(7, 7)}
    side = min(size)
    evidence = make_evidence(label, 0.5, regions, size=224, box=(0, 0, side, side), source="a")
    return np.asarray(evidence_sheet(Image.new("RGB", size), evidence))


def ink_rows(picture: np.ndarray, height: int) -> int:
    """Height of the first line of text below the photo."""
    dark = (picture[height:] < 100).all(axis=2).any(axis=1)
    first = int(dark.argmax())
    return int((~dark[first:]).argmax())


def test_the_legend_is_read_beside_photos_of_every_size():
    small, large = sheet((400, 300)), sheet((4032, 3024))
    shares = [ink_rows(small, 300), ink_rows(large, 3024)]
    assert shares[1] / shares[0] == pytest.approx(np.sqrt(4032 * 3024) / 800, rel=0.25)


def test_a_label_s_script_is_in_the_picture():
    canvas = Image.new("L", (300, 40), 255)
    label = drawable("радость")
    ImageDraw.Draw(canvas).text((10, 5), label, font=font(15, label))
    assert np.asarray(canvas).min() < 100
    assert (sheet((400, 300), "радость") != sheet((400, 300), "joy")).any()
