"""TIFF photos of more than 8 bits that Pillow misreads or rejects, read by tifffile."""

from typing import IO, Any

import numpy as np
from PIL import Image

from intclip.data.colour import to_bytes
from intclip.errors import ImageError, reason
from intclip.extras import require

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 277, 284, 339
_DNG_VERSION = 50706
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_FROM_SENSOR = (32803, 34892)  # colour filter array, linear raw
_ICC, _ORIENTATION = 34675, 274
_BYTES_A_PIXEL = 16  # RGBA in float32


def is_raw(image: Image.Image) -> bool:
    """Return whether an opened TIFF is a camera raw file (DNG), whose first picture is a small preview."""
    tags = getattr(image, "tag_v2", {})
    return _DNG_VERSION in tags or tags.get(_PHOTOMETRIC) in _FROM_SENSOR


def is_deep(image: Image.Image) -> bool:
    """Return whether Pillow would misread an opened TIFF."""
    tags = getattr(image, "tag_v2", {})
    bits, formats = tags.get(_BITS, (1,)), tags.get(_SAMPLE_FORMAT, (1,))
    bits, formats = (value if isinstance(value, tuple) else (value,) for value in (bits, formats))
    if tags.get(_PHOTOMETRIC) == _YCBCR and tags.get(_COMPRESSION, 1) == 1:  # Pillow calls it truncated
        return True
    if max(bits, default=1) <= 8:
        return False
    photometric, grey = tags.get(_PHOTOMETRIC), tags.get(_SAMPLES, 1) == 1
    if grey and photometric == _BLACK_IS_ZERO:
        return (max(bits), max(formats)) not in ((16, 1), (32, 2), (32, 3))
    return not (max(bits) == 16 and max(formats) == 1 and photometric == _RGB and tags.get(_PLANES, 1) == 1)


def read_deep(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image | None:
    """Read the first picture of a TIFF, scaled to 8 bits, see `to_bytes`; None for a camera raw file.

    Raises:
        ImageError: It is too large, damaged, or in an unsupported format.
    """
    stream.seek(0)
    try:
        with require("tifffile", "core").TiffFile(stream) as file:
            page = file.pages[0]
            if page.photometric in _FROM_SENSOR or _DNG_VERSION in page.tags:
                return None
            size = (page.imagewidth, page.imagelength)
            if not all(isinstance(value, int) for value in (*size, page.samplesperpixel, page.imagedepth)):
                raise ValueError("a size is not one number")
            if size[0] * size[1] > max_pixels or page.nbytes > max_pixels * _BYTES_A_PIXEL:
                raise ImageError(
                    f"{name} is too large: {size[0]} × {size[1]} pixels, the limit is {max_pixels / 1e6:.0f} million; "
                    "shrink the photo first"
                )
            samples, bits = page.samplesperpixel, page.bitspersample
            kind = f"{getattr(page.photometric, 'name', page.photometric)!s:.40}, {samples} × {bits!s:.40} bits"
            if (
                page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
                or getattr(page.dtype, "kind", "c") == "c"
            ):
                raise ImageError(f"{name} is an unsupported kind of TIFF ({kind}); save it as 8-bit RGB")
            values = page.asarray()
            axes = page.axes
            profile = page.tags[_ICC].value if _ICC in page.tags else None
            orientation = page.tags[_ORIENTATION].value if _ORIENTATION in page.tags else 1
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # tifffile can raise anything on hostile content
        said = reason(error)
        if "requires the 'imagecodecs' package" in said:
            raise ImageError(
                f"{name} is an unsupported kind of TIFF ({kind}, {said.partition(' ')[0]}); save it as 8-bit RGB"
            ) from error
        raise ImageError(f"{name} cannot be read as TIFF ({said}); it may be damaged: fetch it again") from error
    image = _to_image(values, axes, inverted=page.photometric == _WHITE_IS_ZERO, alpha=bool(page.extrasamples))
    if image is None:
        raise ImageError(f"{name} is an unsupported kind of TIFF ({kind}, axes {axes}); save it as 8-bit RGB")
    if isinstance(profile, bytes):
        image.info["icc_profile"] = profile
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    image.info["exif"] = exif.tobytes()
    return image


def _to_image(values: Any, axes: str, *, inverted: bool, alpha: bool) -> Image.Image | None:
    """Convert to grey, RGB or RGBA of 8 bits; None if the axes are not those of one picture."""
    if axes == "SYX":
        values, axes = np.moveaxis(values, 0, 2), "YXS"
    if axes == "YX":
        values = values[:, :, None]
    elif axes != "YXS":
        return None
    colours = 1 if values.shape[2] < 3 else 3
    pixels = to_bytes(values[:, :, :colours])
    if inverted:
        pixels = 255 - pixels
    image = Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if colours == 1 else pixels))
    if alpha and values.shape[2] > colours:
        image = image.convert("RGB")
        image.putalpha(Image.fromarray(np.ascontiguousarray(to_bytes(values[:, :, colours]))))
    return image
