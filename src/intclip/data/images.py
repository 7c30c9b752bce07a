"""Read a photo of any kind as RGB."""

import base64
import io
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from intclip.data.colour import to_srgb
from intclip.data.content import Content, PhotoFile, open_content, read_bytes, read_member
from intclip.data.find import SUFFIXES, find_images
from intclip.data.formats import MAX_JPEG_PIXELS, MAX_PIXELS, open_image, too_large
from intclip.data.naming import describe
from intclip.data.raw import looks_raw, read_preview
from intclip.data.sample import EmbeddedPhoto, Lenient, RemoteFile, TarMember
from intclip.errors import ImageError
from intclip.machine import memory_is_short

__all__ = [
    "MAX_PIXELS", "SUFFIXES", "ImageInput", "data_url", "describe", "find_images", "is_photo", "jpeg_base64",
    "read_bytes", "read_image", "read_member", "whole_size",
]  # fmt: skip

ImageInput = PhotoFile | Lenient | Content | IO[bytes] | Image.Image | npt.NDArray[np.uint8]
"""Inputs of `read_image`."""

MAX_SCANS = 200
"""Maximum scans of a progressive JPEG. Cameras and editors write about ten. Each costs a pass over all pixels
but may be a few bytes long, so a file of 1 MB could take minutes."""

_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TRANSPOSE[number] for number in (5, 6, 7, 8)}
_WHOLE = "whole_size"
"""Key in a photo's `info`; see `whole_size`."""
_SINGLE = (str, os.PathLike, TarMember, EmbeddedPhoto, RemoteFile, Lenient, Content, Image.Image, np.ndarray)
_truncated = threading.Lock()
"""Held while Pillow's global option for truncated files is on."""

# Pillow warns from half of MAX_PIXELS on; our limit raises its own error, so the warning is redundant.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF is common and harmless: at worst a photo is not turned upright.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def read_image(source: ImageInput, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a photo as PIL RGB (sRGB), upright, on white where transparent; the first frame of an animation.

    The source is not modified: a PIL image keeps its size and draft mode, a stream its position.

    Args:
        source: A path, a tar member, a cell of a Parquet file, a remote file, a file's bytes, a binary stream, a PIL
            image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; or one of them as `Lenient`.
        min_side: Let the JPEG decoder halve the photo while its short side stays at least this many pixels: for
            photos much larger than the model's input this saves most of the decoding time and changes pixels slightly.
        max_pixels: Larger photos are rejected before decoding; at most `MAX_PIXELS` for files. If equal to
            `MAX_PIXELS`, larger JPEGs up to `MAX_JPEG_PIXELS` are downscaled by the decoder.

    Raises:
        ImageError: The file is missing, empty, truncated, not an image, in an unsupported format, or too large; or the
            source has an unsupported type.
        MemoryError: Out of memory.
    """
    lenient = isinstance(source, Lenient)
    while isinstance(source, Lenient):
        source = source.source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = describe(source)
    if isinstance(source, Image.Image):
        again = _open_again(source, max_pixels)
        return _decode(source, name, None, max_pixels) if again is None else _decode(again, name, min_side, max_pixels)
    try:
        return _read(source, name, min_side, max_pixels)
    except ImageError:
        if not lenient:
            raise
    with _reading_truncated():
        return _read(source, name, min_side, max_pixels)


def whole_size(photo: Image.Image) -> tuple[int, int]:
    """Return (width, height) that `read_image` gives the same photo without `min_side`, with no need to decode it."""
    size: tuple[int, int] = photo.info.get(_WHOLE, photo.size)
    return size


def is_photo(value: object) -> bool:
    """Return whether a value is one photo (or a folder), not a list of photos."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":  # a column of paths
        return False
    # What cannot be a list either, such as a number, is rejected by `read_image`.
    return isinstance(value, _SINGLE) or hasattr(value, "read") or not hasattr(value, "__iter__")


def jpeg_base64(image: Image.Image, *, quality: int) -> str:
    """Encode an RGB image as JPEG in base64."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def data_url(image: Image.Image, side: int, *, quality: int) -> str:
    """Encode an RGB image, longer side at most `side`, as a JPEG data URL."""
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return "data:image/jpeg;base64," + jpeg_base64(image, quality=quality)


def _read(source: Any, name: str, min_side: int | None, max_pixels: int) -> Image.Image:
    with open_content(source) as stream:
        head = stream.read(16)
        stream.seek(0)
        if looks_raw(head, Path(name).suffix):
            return _read_raw(stream, name, min_side, max_pixels)
        try:
            image = open_image(stream, name, max_pixels)
        except ImageError:
            raise
        except Exception as error:  # Pillow's parsers can raise anything on hostile headers
            raise _damaged(name, error) from error
        if image is None:
            return _read_raw(stream, name, min_side, max_pixels)
        return _decode(image, name, min_side, max_pixels)


def _read_raw(stream: IO[bytes], name: str, min_side: int | None, max_pixels: int) -> Image.Image:
    content, turn = read_preview(stream, name, max_pixels)
    if isinstance(content, np.ndarray):
        image, turned = _from_array(content), False
    else:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
            turned = _orientation(opened) != 1
        try:
            image = read_image(content, min_side=min_side, max_pixels=max_pixels)
        except ImageError as error:
            raise ImageError(f"{name}: its preview cannot be read ({error})") from error
    if turn is None or turned:
        return image
    whole = _turned_size(whole_size(image), turn)
    image = image.transpose(turn)
    image.info = {_WHOLE: whole}
    return image


def _open_again(image: Image.Image, max_pixels: int) -> Image.Image | None:
    """Reopen a caller's image that is not decoded yet; None if not possible."""
    file = image.fp if isinstance(image, ImageFile.ImageFile) and image.tile and image.tell() == 0 else None
    if file is None:
        return None
    try:
        place = file.tell()
        file.seek(0)
        content = file.read()
        file.seek(place)
        again = open_image(io.BytesIO(content), "", max_pixels)
    except Exception:  # it can still be read directly, or will raise its own error
        return None
    if again is None or (again.size, again.mode) != (image.size, image.mode):  # the caller has set a draft mode
        return None
    again.info = dict(image.info)
    return again


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"the given array is {array.dtype}; give uint8 with values 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise ImageError(f"the given array has shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    return to_srgb(Image.fromarray(np.array(array)))


def _decode(image: Image.Image, name: str, min_side: int | None, max_pixels: int) -> Image.Image:
    try:
        whole, (width, height) = None, image.size
        if width == 0 or height == 0:
            raise ImageError(f"{name} has no pixels ({width} × {height})")
        if (scans := _count_scans(image)) > MAX_SCANS:
            raise ImageError(f"{name} has {scans} scans, the limit is {MAX_SCANS}; save the photo again")
        if width * height > max_pixels:
            whole = _shrink(image, name, min_side, max_pixels)
        elif min_side is not None and image.format in ("JPEG", "MPO"):
            whole = image.size
            image.draft(None, (min_side, min_side))
        image.load()
        result, method = to_srgb(image), _TRANSPOSE.get(_orientation(image))
        if method is not None:
            result = result.transpose(method)
        elif result is image:
            result = result.copy()
        # Without profile, orientation and transparency, which must not be applied twice.
        result.info = {} if whole is None else {_WHOLE: _turned_size(whole, method)}
        return result
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders can raise anything on hostile content
        raise _damaged(name, error) from error


def _turned_size(size: tuple[int, int], method: Image.Transpose | None) -> tuple[int, int]:
    return size[::-1] if method in _SIDEWAYS else size


def _shrink(image: Image.Image, name: str, min_side: int | None, max_pixels: int) -> tuple[int, int]:
    """Let the JPEG decoder halve a photo until it is within the limit, and further towards `min_side`.

    Returns:
        (width, height) without `min_side`.

    Raises:
        ImageError: It is too large for the decoder, or another format. (A progressive JPEG needs the same memory at any
            size.)
    """
    width, height = image.size
    drafts = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    if not drafts or max_pixels < MAX_PIXELS or width * height > MAX_JPEG_PIXELS:
        raise too_large(name, f"{width} × {height}", max_pixels)
    scale = next(scale for scale in (2, 4, 8) if width * height <= max_pixels * scale**2)
    sides = (width // scale, height // scale)
    image.draft(None, sides if min_side is None else (min(sides[0], min_side), min(sides[1], min_side)))
    return -(-width // scale), -(-height // scale)


def _count_scans(image: Image.Image) -> int:
    """Count the scans of an undecoded progressive JPEG, approximately; 0 for anything else."""
    if not isinstance(image, ImageFile.ImageFile) or image.fp is None or not image.info.get("progressive"):
        return 0
    place = image.fp.tell()
    image.fp.seek(0)
    scans = image.fp.read().count(b"\xff\xda")
    image.fp.seek(place)
    return scans


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about the pixels
        return 1


@contextmanager
def _reading_truncated() -> Iterator[None]:
    with _truncated:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _damaged(name: str, error: Exception) -> ImageError:
    if memory_is_short():  # do not record a good photo as unreadable
        raise MemoryError(f"out of memory while reading {name}") from error
    if isinstance(error, MemoryError):
        return ImageError(f"{name} does not fit into memory; shrink the photo first")
    reason = " ".join(str(error).split()) or type(error).__name__
    state = "truncated" if "truncated" in reason or "Truncated" in reason else "damaged"
    return ImageError(f"{name} is {state} ({reason}); fetch it again")
