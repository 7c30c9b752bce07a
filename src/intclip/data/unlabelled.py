"""Unlabelled posts, for `intclip predict` and `intclip report`."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from intclip.data.find import find_images, list_paths, photo_beside
from intclip.data.images import ImageInput
from intclip.data.remote import MAX_BYTES, is_remote
from intclip.data.sample import EmbeddedPhoto
from intclip.data.tables import SUFFIXES, read_rows
from intclip.errors import DatasetError, ImageError

STDIN = "-"
"""As a path: standard input."""


class _Named(io.BytesIO):
    """Bytes in memory with a name for messages."""

    name = "<stdin>"


def is_table(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has a table's suffix (.csv, .tsv, .jsonl, .ndjson, .parquet)."""
    return Path(path).suffix.lower() in SUFFIXES


def read_posts(
    paths: Sequence[str], *, exclude: Sequence[str] = ()
) -> tuple[list[ImageInput | None], list[str | None]]:
    """Return photos and texts of posts, None where one is missing.

    Args:
        paths: Tables with columns image, text or both (see `intclip.data.tables.COLUMNS` for other
            names), and photos, folders, patterns and lists, which are posts without text; "-" reads a list, or one
            photo, from standard input. Photos of a table are relative to its folder. Photos of lists and tables may be
            missing; reading them reports it.
        exclude: See `find_images`.

    Raises:
        DatasetError: A table is missing or malformed, or a row has neither photo nor text.
        ImageError: A folder has no photos.
    """
    images: list[ImageInput | None] = []
    texts: list[str | None] = []
    for kind, group in groupby(paths, lambda path: "stdin" if path == STDIN else is_table(path)):
        if kind == "stdin":
            found: Sequence[ImageInput] = read_standard_input()
        elif not kind:
            found = find_images(list(group), exclude=exclude, keep_missing=True)
        else:
            for table in map(Path, group):
                for image, text in _read_table(table):
                    images.append(image)
                    texts.append(text)
            continue
        images += found
        texts += [None] * len(found)
    return images, texts


def read_standard_input() -> Sequence[ImageInput]:
    """Return the photos listed on standard input, one path per line, or the one photo that it contains.

    Raises:
        ImageError: It is empty or too large.
    """
    content = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ImageError(f"standard input has more than {MAX_BYTES >> 20} MiB; give the photos as files")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return [_Named(content)]
    if "\0" in text:
        return [_Named(content)]
    return list_paths(text, "standard input", Path(), keep_missing=True)


def _read_table(table: Path) -> Iterator[tuple[ImageInput | None, str | None]]:
    if not table.is_file():
        raise DatasetError(f"no such table: {table}; check the path")
    for row in read_rows(table):
        image, text = row.known.get("image"), _filled(row.known.get("text"))
        if not isinstance(image, EmbeddedPhoto):
            image = _filled(image)
        if image is None and text is None:
            raise DatasetError(f"{row.where}: neither photo nor text; fill one in or remove the row")
        yield (photo_beside(table.parent, image) if isinstance(image, str) and not is_remote(image) else image), text


def _filled(cell: object) -> str | None:
    return cell if isinstance(cell, str) and cell.strip() else None
