"""Read one photo of any kind as RGB, or refuse it by name."""

import io
import os
import re
import stat
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from intclip.data.find import SUFFIXES, find_images, utf8_name
from intclip.data.sample import RemoteFile, TarMember
from intclip.errors import ImageError
from intclip.machine import memory_is_short

__all__ = ["MAX_PIXELS", "SUFFIXES", "ImageInput", "describe", "find_images", "read_bytes", "read_image", "read_member"]

ImageInput = str | Path | TarMember | RemoteFile | bytes | Image.Image | npt.NDArray[np.uint8]
"""What `read_image` takes."""

MAX_PIXELS = 178_956_970
"""Largest photo read, in pixels: where Pillow itself speaks of a decompression bomb (about 536 MB as RGB)."""

MAX_SCANS = 200
"""Most scans of a progressive JPEG. Cameras and editors write about ten; each costs a pass over all pixels, and a few
bytes are enough for one: a file of 1 MB can hold some minutes of work."""

# An explicit list keeps out EPS, which Pillow hands to Ghostscript, and formats that nobody shares photos in.
# MPO (two JPEGs in one file, as phones write) comes with JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

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
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP")

# Pillow warns from half of MAX_PIXELS on; the limit here is stated and refused by name, so the warning says nothing.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Damaged EXIF is common, and harmless: at worst a photo is not turned upright.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


def read_image(source: ImageInput, *, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A photo as PIL RGB, upright, over white where it is transparent; of an animation, the first frame.

    Args:
        source: A path, a tar member, a remote file, a file's bytes, a PIL image, or a uint8 array (H, W), (H, W, 1),
            (H, W, 3) RGB or (H, W, 4) RGBA.
        min_side: Let the JPEG decoder halve the photo while its short side stays at least this many pixels: for photos
            much larger than the model's input this saves most of the decoding time and changes pixels slightly.
        max_pixels: Larger photos are refused from their header, before decoding; at most `MAX_PIXELS` for files.

    Raises:
        ImageError: There is no such file, it is empty, truncated, not an image, of an unsupported kind, or too large;
            or the source is of no kind that holds a photo.
        MemoryError: It failed while no memory was left.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    name = describe(source)
    if isinstance(source, Image.Image):
        return _decode(source, name, min_side, max_pixels)
    with _open_stream(source, name) as stream:
        try:
            image = Image.open(stream, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ImageError(_unidentified(stream, name)) from error
        except Image.DecompressionBombError as error:
            size = re.search(r"\d+", str(error))
            raise _too_large(name, size.group() if size else "too many", max_pixels) from error
        except Exception as error:  # Pillow's parsers raise whatever a hostile header makes them raise
            raise _damaged(name, error) from error
        return _decode(image, name, min_side, max_pixels)


def describe(source: ImageInput) -> str:
    """How messages and tables name a photo: its path, archive and member, or what kind of object it is."""
    if isinstance(source, TarMember):
        return utf8_name(f"{source.archive}!{source.name}")
    if isinstance(source, RemoteFile):
        return source.url if source.name is None else utf8_name(f"{source.url}!{source.name}")
    if isinstance(source, str | Path):
        return utf8_name(str(source))
    kinds = {bytes: "the given image data", np.ndarray: "the given array"}
    return kinds.get(type(source), "the given image")


def _open_stream(source: str | Path | TarMember | RemoteFile | bytes, name: str) -> IO[bytes]:
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name} is empty (0 bytes); pass the content of an image file")
        return io.BytesIO(source)
    if isinstance(source, TarMember):
        return io.BytesIO(read_member(source))
    if isinstance(source, RemoteFile):
        from intclip.data.remote import read_remote

        return io.BytesIO(read_remote(source))
    if not isinstance(source, str | os.PathLike):  # a missing value of a table; a number would be an open file
        raise ImageError(f"{type(source).__name__} {str(source)[:40]} is no photo; give a path, an image or an array")
    if name.startswith(("http://", "https://")):
        raise ImageError(f"{name} is an address, not a file; download the photo first")
    try:
        status = os.stat(source)  # noqa: PTH116 (takes str and Path alike)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not a photo; name a file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ImageError(f"{name} is not a regular file; give an image file")
        if status.st_size == 0:
            raise ImageError(f"{name} is an empty file (0 bytes); fetch it again")
        return Path(source).open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"no such photo: {name}; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}; check the path") from error


def read_bytes(source: str | Path | TarMember | RemoteFile) -> bytes:
    """The bytes of a photo's file, as they are stored.

    Raises:
        ImageError: There is no such file, it is empty, or it cannot be read.
    """
    name = describe(source)
    try:
        with _open_stream(source, name) as stream:
            return stream.read()
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror or error}; check the disk") from error


def read_member(member: TarMember) -> bytes:
    """The bytes of a file in a tar archive.

    Raises:
        ImageError: The archive is gone or shorter than its index says, or the file is empty.
    """
    name = describe(member)
    try:
        with member.archive.open("rb") as archive:
            archive.seek(member.offset)
            content = archive.read(member.size)
    except FileNotFoundError as error:
        raise ImageError(f"no such archive: {member.archive}; check the path") from error
    except OSError as error:
        raise ImageError(f"cannot read {name}: {error.strerror or error}") from error
    if len(content) < member.size or not content:
        raise ImageError(f"{name} is {'truncated' if member.size else 'empty (0 bytes)'}; fetch the archive again")
    return content


def _from_array(array: npt.NDArray[np.uint8]) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"the given array is {array.dtype}; give uint8 with values 0 to 255")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))) or array.size == 0:
        raise ImageError(f"the given array has shape {array.shape}; give (H, W), (H, W, 3) or (H, W, 4)")
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _decode(image: Image.Image, name: str, min_side: int | None, max_pixels: int) -> Image.Image:
    try:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_large(name, f"{width} × {height}", max_pixels)
        if width == 0 or height == 0:
            raise ImageError(f"{name} has no pixels ({width} × {height})")
        if (scans := _count_scans(image)) > MAX_SCANS:
            raise ImageError(f"{name} has {scans} scans, the limit is {MAX_SCANS}; save the photo anew")
        if min_side is not None and image.format in ("JPEG", "MPO"):
            image.draft(None, (min_side, min_side))
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever hostile content makes them raise
        raise _damaged(name, error) from error


def _count_scans(image: Image.Image) -> int:
    """Scans of a progressive JPEG that was not decoded yet, at most a few too many; 0 of anything else."""
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


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        return _from_deep_grey(image)
    if mode == "LAB":
        rgb = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        if rgb is None:
            raise ImageError("LAB colours could not be converted; save the photo as RGB")
        return rgb
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Greyscale of 16 or 32 bits to 8: Pillow's own conversion clips at 255, which turns such photos white."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode == "F":
        full = 1.0 if values.max() <= 1 else 255.0 if values.max() <= 255 else float(values.max())
    else:
        full = 255.0 if image.mode == "I" and values.max() <= 255 else 65535.0
        full = max(full, float(values.max()))
    return Image.fromarray((values / full * 255).round().clip(0, 255).astype(np.uint8)).convert("RGB")


def _unidentified(stream: IO[bytes], name: str) -> str:
    stream.seek(0)
    head = stream.read(512)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        return f"{name} is a HEIC photo, which is not supported; save it as JPEG first"
    if head.startswith(_MAGIC) or (head[:4] == b"RIFF" and len(head) < 32) or head[4:12] == b"ftypavif":
        return f"{name} is truncated or damaged: its header is incomplete; fetch it again"
    kind = ""
    if re.match(rb"\s*(<\?xml|<!doctype|<html|<svg|\{)", head, re.IGNORECASE):
        kind = " (it holds text, such as a web page or a drawing)"
    return f"{name} is not an image that can be read{kind}; give JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF"


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    limit = f"{min(max_pixels, MAX_PIXELS) / 1e6:.0f} million"
    return ImageError(f"{name} is too large: {size} pixels, the limit is {limit}; shrink the photo first")


def _damaged(name: str, error: Exception) -> ImageError:
    if memory_is_short():  # a photo that is not to blame must not be kept as one that cannot be read
        raise MemoryError(f"no memory is left to read {name}") from error
    if isinstance(error, MemoryError):
        return ImageError(f"{name} does not fit into memory; shrink the photo first")
    reason = " ".join(str(error).split()) or type(error).__name__
    state = "truncated" if "truncated" in reason or "Truncated" in reason else "damaged"
    return ImageError(f"{name} is {state} ({reason}); fetch it again")
