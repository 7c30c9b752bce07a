"""Shared parts of pictures: colours, fonts, saving."""

import importlib.util
import logging
import unicodedata
from functools import cache
from pathlib import Path

from anyascii import anyascii
from PIL import Image, ImageFont, features

from intclip.errors import IntclipError
from intclip.files import atomic_path

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PAPER, QUIET = (20, 20, 20), (255, 255, 255), (110, 110, 110)

_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "PingFang.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Nirmala.ttf",
    "NotoSansThai-Regular.ttf",
    "LeelawUI.ttf",
    "arial.ttf",
    "NotoEmoji-Regular.ttf",
    "seguisym.ttf",
)
"""Fonts of Linux, macOS and Windows that cover most scripts, searched in the system's font folders."""
_NO_CHARACTER = "\U0010fffe"
"""A character without a glyph in any font."""
_UNSEEN = ("Cf", "Cc", "Mn", "Me", "Zs")
"""Unicode categories of characters that may be blank."""
_log = logging.getLogger(__name__)


def font(size: int, text: str = "") -> Font:
    """Return a font that has all characters of a text; Pillow's default if no installed one has."""
    return _font(_font_for(text) or "", size)


def drawable(text: str) -> str:
    """Transliterate a text to ASCII if no installed font can draw it, and log that once per text."""
    return text if _font_for(text) is not None else _transliterate(text)


def shorten(text: str, width: int, size: int = 15) -> str:
    """Shorten a text to `width` pixels with an ellipsis, transliterating if needed."""
    text = drawable(text)
    drawn = font(size, text)
    if drawn.getlength(text) <= width:
        return text
    end = "…" if _font_for(text + "…") == _font_for(text) else "..."
    while text and drawn.getlength(text + end) > width:
        text = text[:-1]
    return text + end


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture atomically.

    Raises:
        IntclipError: The suffix is neither .png nor .jpg.
        StorageError: It cannot be written.
    """
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if kind is None:
        raise IntclipError(f"{path}: name a .png or .jpg file")
    with atomic_path(path) as partial:
        picture.save(partial, kind)


@cache
def _font_for(text: str) -> str | None:
    """Return the first font that can draw a text, "" for Pillow's default; None if there is none."""
    # Joining and right-to-left scripts need more than glyphs.
    shaped = any(unicodedata.bidirectional(letter) in ("R", "AL", "AN") for letter in text)
    if shaped and not (features.check("raqm") and features.check("fribidi")):
        return None
    return next((name for name in ("", *_FONTS) if _has_glyphs(name, text)), None)


def _has_glyphs(name: str, text: str) -> bool:
    try:
        drawn = _font(name, 20)
    except OSError:  # not installed
        return False
    missing = _ink(drawn, _NO_CHARACTER)
    return all(_ink(drawn, letter) != missing for letter in set(text) if unicodedata.category(letter) not in _UNSEEN)


def _ink(drawn: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    mask = drawn.getmask(letter)
    return mask.size, bytes(mask)


@cache
def _font(name: str, size: int) -> Font:
    if not name:
        return ImageFont.load_default(size)
    if name == _FONTS[0] and (found := importlib.util.find_spec("matplotlib")) is not None and found.origin:
        # part of matplotlib
        brought = Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name
        if brought.is_file():
            return ImageFont.truetype(brought, size)
    return ImageFont.truetype(name, size)


@cache
def _transliterate(text: str) -> str:
    found = anyascii(text).strip() or "?"
    _log.info("no installed font can draw %r: the picture says %r; install a font such as Noto Sans", text, found)
    return found
