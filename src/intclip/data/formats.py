"""Open photos of supported formats without decoding; describe files that cannot be opened."""

import re
from contextlib import suppress
from typing import IO

from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from intclip.data import tiff
from intclip.data.jxl import SIGNATURES, jxl_size
from intclip.errors import ImageError, MissingExtraError, reason
from intclip.extras import require

MAX_PIXELS = 178_956_970
"""Maximum pixels of a photo: Pillow's limit for decompression bombs (about 536 MB as RGB)."""

MAX_JPEG_PIXELS = 4 * MAX_PIXELS
"""Maximum pixels of a JPEG downscaled by its decoder, which takes about 3 s."""

# An explicit list excludes EPS, which Pillow passes to Ghostscript, and formats not used for photos.
# MPO (two JPEGs in one file, as phones write) comes with JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", *tiff.MAGIC, b"\0\0\0\x0cjP")


def open_image(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image | None:
    """Open a photo, if possible without decoding it; None for a camera raw file.

    A JPEG of more than `MAX_PIXELS` is opened too, but must be decoded at a smaller size.

    Raises:
        ImageError: It is not an image, damaged, too large, or in an unsupported format.
    """
    head = stream.read(64)
    stream.seek(0)
    try:
        if _is_heif(head):
            return _open_heif(stream, name)
        if head.startswith(SIGNATURES):
            return _open_jxl(stream, name, max_pixels)
        image = Image.open(stream, formats=FORMATS)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        if head.startswith(tiff.MAGIC):
            return tiff.read_deep(stream, name, max_pixels)
        raise ImageError(_unidentified(stream, name)) from error
    except Image.DecompressionBombError as error:
        if head.startswith(b"\xff\xd8\xff"):
            stream.seek(0)
            with suppress(Exception):
                return JpegImagePlugin.JpegImageFile(stream)
        size = re.search(r"\d+", str(error))
        raise too_large(name, size.group() if size else "too many", max_pixels) from error
    if tiff.is_raw(image):
        return None
    return tiff.read_deep(stream, name, max_pixels) if tiff.is_deep(image) else image


def _is_heif(head: bytes) -> bool:
    """Return whether a file is HEIC or HEIF by its first 64 bytes; AVIF may have the same first brand."""
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS and b"avif" not in head[8:]


def too_large(name: str, size: str, max_pixels: int) -> ImageError:
    """Return the error for a photo with too many pixels."""
    limit = f"{min(max_pixels, MAX_PIXELS) / 1e6:.0f} million"
    return ImageError(f"{name} is too large: {size} pixels, the limit is {limit}; shrink the photo first")


def _open_heif(stream: IO[bytes], name: str) -> Image.Image:
    try:
        opener = require("pillow_heif", "heif").HeifImageFile
    except MissingExtraError as error:
        raise ImageError(f"{name} is a HEIC photo; to read such photos: pip install 'intclip[heif]'") from error
    try:
        image: Image.Image = opener(stream)
    except (SyntaxError, OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"{name} is a HEIC photo that cannot be read ({reason(error)}); fetch it again") from error
    return image


def _open_jxl(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    try:
        opener = require("pillow_jxl.JpegXLImagePlugin", "jxl").JXLImageFile
    except MissingExtraError as error:
        raise ImageError(f"{name} is a JPEG XL photo; to read such photos: pip install 'intclip[jxl]'") from error
    size = jxl_size(stream.read())
    if size is None:
        raise ImageError(f"{name} is truncated or damaged: its header is incomplete; fetch it again")
    if size[0] * size[1] > max_pixels:
        raise too_large(name, f"{size[0]} × {size[1]}", max_pixels)
    stream.seek(0)
    image: Image.Image = opener(stream)
    return image


def _unidentified(stream: IO[bytes], name: str) -> str:
    stream.seek(0)
    head = stream.read(512)
    if head.startswith(_MAGIC) or (head[:4] == b"RIFF" and len(head) < 32) or head[4:12] == b"ftypavif":
        stream.seek(0)
        said = _refusal(stream, head)
        detail = f": {said}" if said else ""
        return f"{name} is damaged or in an unsupported variant{detail}; fetch it again, or save it as JPEG"
    kind = ""
    if re.match(rb"\s*(<\?xml|<!doctype|<html|<svg|\{)", head, re.IGNORECASE):
        kind = " (it is text, such as a web page or a drawing)"
    return f"{name} is not a supported image{kind}; give JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"


def _refusal(stream: IO[bytes], head: bytes) -> str:
    """Return why Pillow's reader of this format rejects a file."""
    for format in FORMATS:
        factory, accept = Image.OPEN.get(format, (None, None))
        if factory is not None and accept is not None and accept(head[:16]) is True:
            try:
                factory(stream, "")
            except Exception as error:
                return reason(error)
    return ""
