"""Convert decoded photos of any mode to sRGB."""

from functools import lru_cache
from io import BytesIO
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from intclip.errors import ImageError

MAX_PROFILE = 4 * 2**20
"""Largest accepted colour profile in bytes; printer profiles have up to about 3 MB."""

_SPACES = {"RGB": b"RGB ", "RGBA": b"RGB ", "L": b"GRAY", "LA": b"GRAY", "CMYK": b"CMYK"}
"""Mode to the colour space of its profiles."""
_SAME = 2  # of 255; a profile that changes no colour by more is equivalent to sRGB
_MANY_STEPS = b"mpet"  # the only tag type with unbounded work per colour


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a photo to RGB in the sRGB colour space, on white where it is transparent.

    An embedded ICC profile is applied; one that is damaged, or for other kinds of pixels, is ignored.

    Raises:
        ImageError: Its colours cannot be converted.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("P", "PA", "RGBa") or (image.mode in ("1", "L", "RGB") and "transparency" in image.info):
        transparent = image.mode != "P" or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    if isinstance(profile, bytes) and profile[16:20] == _SPACES.get(image.mode):
        image = _follow(image, profile)
    return _to_rgb(image)


def _follow(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert to sRGB, keeping transparency; unchanged if the profile cannot be applied."""
    alpha = image.getchannel("A") if image.mode in ("RGBA", "LA") else None
    colours = image.convert(image.mode[:-1]) if alpha is not None else image
    transform = _transform(profile, colours.mode)
    if transform is None:
        return image
    result = ImageCms.applyTransform(colours, transform)
    assert result is not None  # None is only returned for in-place conversion
    if alpha is not None:
        result.putalpha(alpha)
    return result


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform from a profile to sRGB; None if it is sRGB or cannot be applied.

    The cost is bounded: Pillow's library builds a table of at most 280,000 colours for profiles with a
    fixed number of steps; others are ignored.
    """
    if len(profile) > MAX_PROFILE or _MANY_STEPS in profile:
        return None
    try:
        source = ImageCms.getOpenProfile(BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    colours = np.array(list(product(range(0, 256, 51), repeat=3)), dtype=np.uint8)[None]
    changed = ImageCms.applyTransform(Image.fromarray(colours), transform)
    assert changed is not None
    return int(np.abs(np.asarray(changed).astype(int) - colours).max()) <= _SAME


def _to_rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I") or mode == "F":
        return Image.fromarray(to_bytes(np.asarray(image))).convert("RGB")
    if mode == "LAB":
        rgb = ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
        if rgb is None:
            raise ImageError("LAB colours could not be converted; save the photo as RGB")
        return rgb
    if mode in ("RGBA", "LA"):
        rgba = image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def to_bytes(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Scale values of 16 bits and more to 0 to 255.

    Full brightness is the smallest usual maximum that covers all values: for floats 1, 255, or the
    largest value; for 16-bit integers their maximum; for larger integers 255, 65,535, 4,294,967,295, or the largest
    value. (Pillow clips at 255, which turns such photos white.)

    Args:
        values: Any shape, integers or floats; NaN and negative values become black.
    """
    if values.dtype.kind == "f":
        values = np.asarray(np.nan_to_num(values))
    scaled: npt.NDArray[Any] = values.astype(np.float64 if values.dtype.itemsize > 2 else np.float32)
    return (scaled * (255 / _full_scale(values))).round().clip(0, 255).astype(np.uint8)


def _full_scale(values: npt.NDArray[Any]) -> float:
    """Return the value of full brightness, see `to_bytes`."""
    most = float(values.max())
    if values.dtype.kind == "f":
        return 1.0 if most <= 1 else 255.0 if most <= 255 else most
    if values.dtype.itemsize <= 2:
        return 65535.0 if values.dtype.kind == "u" else 32767.0
    if values.dtype == np.uint32 and most > 2**24:
        return 2.0**32 - 1
    return 255.0 if most <= 255 else max(65535.0, most)
