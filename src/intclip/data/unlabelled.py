"""Posts without labels, from tables: what `intclip predict` reads."""

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from intclip.data.images import find_images
from intclip.data.tables import SUFFIXES, read_rows
from intclip.errors import DatasetError


def is_table(path: str | os.PathLike[str]) -> bool:
    """Whether a path is named like a table (.csv, .tsv, .jsonl, .ndjson, .parquet)."""
    return Path(path).suffix.lower() in SUFFIXES


def read_posts(paths: Sequence[str]) -> tuple[list[Path | None], list[str | None]]:
    """Photos and words of posts, None where a post lacks one of them.

    Args:
        paths: Tables with columns image, text or both (their other names: `intclip.data.tables.COLUMNS`), and photos,
            folders and patterns, which are posts without words. Photos of a table are relative to its folder.

    Raises:
        DatasetError: A table is missing or malformed, or a row has neither photo nor words.
        ImageError: A folder holds no photo.
    """
    images: list[Path | None] = []
    texts: list[str | None] = []
    for tabular, group in groupby(paths, is_table):
        if not tabular:
            found = find_images(list(group))
            images += found
            texts += [None] * len(found)
            continue
        for table in map(Path, group):
            for image, text in _read_table(table):
                images.append(image)
                texts.append(text)
    return images, texts


def _read_table(table: Path) -> Iterator[tuple[Path | None, str | None]]:
    if not table.is_file():
        raise DatasetError(f"no such table: {table}; check the path")
    for row in read_rows(table):
        image, text = (_filled(row.known.get(kind)) for kind in ("image", "text"))
        if image is None and text is None:
            raise DatasetError(f"{row.where}: there is neither photo nor text; fill one in or remove the row")
        yield (None if image is None else table.parent / image), text


def _filled(cell: object) -> str | None:
    return cell if isinstance(cell, str) and cell.strip() else None
