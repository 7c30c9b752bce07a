"""What drawn pictures share: colours, type, saving."""

from pathlib import Path

from PIL import Image, ImageFont

from intclip.errors import IntclipError
from intclip.files import atomic_path

INK, PAPER, QUIET = (20, 20, 20), (255, 255, 255), (110, 110, 110)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, in pixels."""
    return ImageFont.load_default(size)


def shorten(text: str, width: int, size: int = 15) -> str:
    """A text that is at most `width` pixels wide, cut with an ellipsis."""
    drawn = font(size)
    if drawn.getlength(text) <= width:
        return text
    while text and drawn.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all.

    Raises:
        IntclipError: The suffix is neither .png nor .jpg.
        StorageError: It cannot be written.
    """
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if kind is None:
        raise IntclipError(f"{path} has no suffix of a picture; name it *.png or *.jpg")
    with atomic_path(path) as partial:
        picture.save(partial, kind)
