"""Read a photo's bytes from a file, an archive, a table, a URL, memory or a stream."""

import io
import os
import stat
import threading
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from intclip.data.naming import describe
from intclip.data.remote import MAX_BYTES, is_remote, read_remote
from intclip.data.sample import EmbeddedPhoto, RemoteFile, TarMember
from intclip.errors import ImageError, reason
from intclip.extras import require

PhotoFile = str | os.PathLike[str] | TarMember | EmbeddedPhoto | RemoteFile
"""A photo in a file or in a part of one."""
Content = bytes | bytearray | memoryview
"""The bytes of a photo's file."""

_streams = threading.Lock()
"""Guards streams that are passed several times and read by threads."""


def open_content(source: PhotoFile | Content | IO[bytes]) -> IO[bytes]:
    """Open a photo's bytes as a new stream.

    A seekable stream is read from its beginning, as Pillow does, and its position is restored.

    Raises:
        ImageError: The file is missing, empty or unreadable.
    """
    name = describe(source)
    if isinstance(source, Content):
        if not len(source):
            raise ImageError(f"{name} is empty (0 bytes); pass the content of an image file")
        return io.BytesIO(source)
    if isinstance(source, TarMember):
        return io.BytesIO(read_member(source))
    if isinstance(source, EmbeddedPhoto):
        return io.BytesIO(_read_cell(source))
    if isinstance(source, RemoteFile):
        return io.BytesIO(read_remote(source))
    if hasattr(source, "read"):
        return io.BytesIO(_read_stream(source, name))
    if not isinstance(source, str | os.PathLike):  # a missing value of a table, or a file descriptor
        raise ImageError(
            f"{type(source).__name__} {' '.join(str(source).split())[:40]} is not a photo; "
            "give a path, an image or an array"
        )
    if is_remote(name):
        raise ImageError(f"{name} is a URL, not a file; use `intclip batch`, or download the photo")
    try:
        status = os.stat(source)  # noqa: PTH116 (takes str and Path alike)
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{name} is a folder, not a photo; give a file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            raise ImageError(f"{name} is not a regular file; give an image file")
        if status.st_size == 0:
            raise ImageError(f"{name} is an empty file (0 bytes); fetch it again")
        return Path(source).open("rb")
    except FileNotFoundError as error:
        raise ImageError(f"no such photo: {name}; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"cannot read {name}: {reason(error)}; check the path") from error


def read_bytes(source: PhotoFile) -> bytes:
    """Read the bytes of a photo's file.

    Raises:
        ImageError: The file is missing, empty or unreadable.
    """
    try:
        with open_content(source) as stream:
            return stream.read()
    except OSError as error:
        raise ImageError(f"cannot read {describe(source)}: {reason(error)}; check the disk") from error


def read_member(member: TarMember) -> bytes:
    """Read a file in a tar archive.

    Raises:
        ImageError: The archive is missing or truncated, or the file is empty.
    """
    name = describe(member)
    try:
        with member.archive.open("rb") as archive:
            archive.seek(member.offset)
            content = archive.read(member.size)
    except FileNotFoundError as error:
        raise ImageError(f"no such archive: {member.archive}; check the path") from error
    except OSError as error:
        raise ImageError(f"cannot read {name}: {reason(error)}") from error
    if len(content) < member.size or not content:
        raise ImageError(f"{name} is {'truncated' if member.size else 'empty (0 bytes)'}; fetch the archive again")
    return content


def _read_stream(stream: Any, name: str) -> bytes:
    with _streams:
        try:
            place = stream.tell() if stream.seekable() else None
            if place is not None:
                stream.seek(0)
            try:
                content = stream.read(MAX_BYTES + 1)
            finally:
                if place is not None:
                    stream.seek(place)
        except (OSError, ValueError, AttributeError) as error:  # closed, or not really a stream
            raise ImageError(f"cannot read {name}: {reason(error)}; give an open binary file") from error
    if not isinstance(content, bytes | bytearray):
        raise ImageError(f"{name} is open as text; open it in binary mode")
    if not content:
        raise ImageError(f"{name} is empty (0 bytes); give the content of an image file")
    if len(content) > MAX_BYTES:
        raise ImageError(f"{name} is larger than {MAX_BYTES >> 20} MiB; that is not a photo")
    return bytes(content)


def _read_cell(photo: EmbeddedPhoto) -> bytes:
    name = describe(photo)
    try:
        modified = photo.table.stat().st_mtime_ns
        starts = _group_starts(photo.table, modified)
        group = next(i for i, start in reversed(list(enumerate(starts))) if start <= photo.row)
        content = _group(photo.table, modified, photo.column, group)[photo.row - starts[group]]
    except OSError as error:
        raise ImageError(f"cannot read {name}: {reason(error)}; check the path") from error
    except Exception as error:  # Arrow raises its own errors, and Python's, on damaged files
        raise ImageError(f"cannot read {name}: the table is damaged or has changed; write it again") from error
    if not isinstance(content, bytes) or not content:
        raise ImageError(f"{name} has no image data; fill the cell in or remove the row")
    return content


@lru_cache(maxsize=8)
def _group_starts(table: Path, modified: int) -> tuple[int, ...]:
    """Return the first row of each row group of a Parquet file."""
    footer = require("pyarrow.parquet", "core").read_metadata(table)
    starts = [0]
    for number in range(footer.num_row_groups - 1):
        starts.append(starts[-1] + footer.row_group(number).num_rows)
    return tuple(starts)


@lru_cache(maxsize=2)  # neighbouring rows are read in sequence by several threads
def _group(table: Path, modified: int, column: str, number: int) -> list[bytes | None]:
    """Read a column of one row group."""
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    with parquet.ParquetFile(table) as file:
        cells = file.read_row_group(number, columns=[column])[column]
    nested = arrow.types.is_struct(cells.type)
    values: list[bytes | None] = []
    for chunk in cells.chunks:
        values += (chunk.field("bytes") if nested else chunk).to_pylist()
    return values
