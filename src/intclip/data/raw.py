"""Camera raw files, by their embedded preview; needs the extra `raw`."""

from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.errors import ImageError, MissingExtraError, reason
from intclip.extras import require

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dng", "erf", "fff", "iiq", "kdc", "mos", "mrw", "nef", "nrw"),
        *("orf", "pef", "raf", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
"""Suffixes of raw files."""

_MAGIC = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
_TURNS = {3: Image.Transpose.ROTATE_180, 5: Image.Transpose.ROTATE_90, 6: Image.Transpose.ROTATE_270}
"""LibRaw's `flip` to the transpose that makes a photo upright."""


class Preview(NamedTuple):
    """Preview of a raw file.

    Attributes:
        content: A JPEG file, or (H, W, 3) pixels.
        turn: Transpose that makes it upright; None if it is.
    """

    content: bytes | npt.NDArray[np.uint8]
    turn: Image.Transpose | None


def looks_raw(head: bytes, suffix: str) -> bool:
    """Return whether a file is a camera raw file by its first 16 bytes and, if it looks like TIFF, its name."""
    if head.startswith(_MAGIC) or head[4:12] == b"ftypcrx " or (head[:4] == b"II*\0" and head[8:10] == b"CR"):
        return True
    return head.startswith((b"II*\0", b"MM\0*")) and suffix.lower() in SUFFIXES


def read_preview(stream: IO[bytes], name: str, max_pixels: int) -> Preview:
    """Return the largest preview in a raw file, or the photo developed at half size if there is none.

    Raises:
        MissingExtraError: The extra `raw` is not installed.
        ImageError: It is damaged, of an unknown camera, or too large.
    """
    try:
        rawpy = require("rawpy", "raw")
    except MissingExtraError as error:
        raise ImageError(f"{name} is a camera raw file; to read such files: pip install 'intclip[raw]'") from error
    stream.seek(0)
    try:
        with rawpy.imread(stream) as raw:
            turn = _TURNS.get(raw.sizes.flip)
            try:
                thumb = raw.extract_thumb()
            except (rawpy.LibRawNoThumbnailError, rawpy.LibRawUnsupportedThumbnailError):
                if raw.sizes.raw_width * raw.sizes.raw_height > max_pixels:
                    raise ImageError(f"{name} is too large to develop; save it as JPEG first") from None
                return Preview(raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8), None)
            lies = thumb.format == rawpy.ThumbFormat.JPEG
            return Preview(bytes(thumb.data) if lies else np.array(thumb.data), turn)
    except ImageError:
        raise
    except Exception as error:  # LibRaw's errors, and anything on hostile content
        said = (
            error.args[0].decode("utf-8", "replace")
            if error.args and isinstance(error.args[0], bytes)
            else reason(error)
        )
        raise ImageError(f"{name} cannot be read as a camera raw file ({said}); save it as JPEG first") from error
