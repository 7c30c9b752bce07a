"""Two large datasets with Mikels' eight emotions: EmoSet-8 and MultiEmo-Bench."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intclip.data.emotion import Root
from intclip.data.reading import (
    Labels,
    Missing,
    Splits,
    dataset_root,
    first_existing,
    inside,
    read_json,
    settle_missing,
)
from intclip.data.sample import Dataset, Sample
from intclip.data.splitting import deal
from intclip.data.tables import Row, read_rows
from intclip.errors import DatasetError
from intclip.labels import load_taxonomy

_FETCH = "fetch the dataset again (docs/datasets.md)"
_VOTES = ("votes.csv", "annotations.csv", "votes.jsonl", "annotations.jsonl", "votes.parquet", "annotations.parquet")


def load_emoset(root: Root = None, *, missing: Missing = "error") -> Dataset:
    """EmoSet-8 (EmoSet-118K): 118,102 photos, one of eight emotions each, split as published (Yang et al., ICCV 2023).

    Args:
        root: Folder with `train.json`, `val.json`, `test.json`, `image/<emotion>/*.jpg` and `annotation/`. Each JSON is
            a list of rows with the emotion first, then the photo's relative path; ids
            and attribute paths are not read.
        missing: What to do about photos that are not there.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("emoset8", root, "EmoSet")
    reader = Labels(load_taxonomy("mikels8"))
    splits: Splits = {}
    for split in ("train", "val", "test"):
        path = first_existing(folder, [f"{split}.json"], f"list of {split}")
        rows = read_json(path)
        if not isinstance(rows, list):
            raise DatasetError(f"{path}: expected a list of rows, found {rows!r:.60}; {_FETCH}")
        splits[split] = [_emoset_sample(row, f"{path}, row {n}", folder, reader) for n, row in enumerate(rows, 1)]
    splits = settle_missing(splits, missing, f"emoset8 in {folder}", _FETCH)
    return Dataset("emoset8", reader.taxonomy, "singlelabel", splits)


def load_multiemo(
    root: Root = None,
    *,
    annotators: int = 20,
    missing: Missing = "error",
    shares: dict[str, float] | None = None,
    seed: int = 0,
) -> Dataset:
    """MultiEmo-Bench: 10,344 photos with the votes of 20 people for each of eight emotions (Chen et al., 2026).

    A target is the share of annotators who felt the emotion.

    Args:
        root: Folder with one table of votes, `votes` or `annotations` with .csv, .jsonl or .parquet: a photo column
            (`intclip.data.tables.COLUMNS`; paths are relative to the folder), a column for each emotion with its number
            of votes, and, if it differs between photos, a column `annotators`.
        annotators: Number of annotators per photo.
        missing: What to do about photos that are not there.
        shares: Deal the photos into splits, such as {"train": 0.8, "test": 0.2}; by default all are "test".
        seed: Seed of that deal.

    Raises:
        DatasetError: The table is missing or malformed, or photos are missing.
    """
    folder = dataset_root("multiemo", root, "MultiEmo-Bench")
    reader = Labels(replace(load_taxonomy("mikels8"), exclusive=False))
    path = first_existing(folder, _VOTES, "table of votes")
    samples = [_multiemo_sample(row, folder, reader, annotators) for row in read_rows(path)]
    dealt = {"train": samples} if shares else {"test": samples}
    splits = settle_missing(deal(dealt, shares, seed, str(path)), missing, f"multiemo in {folder}", _FETCH)
    return Dataset("multiemo", reader.taxonomy, "multilabel", splits)


def _emoset_sample(row: Any, where: str, folder: Path, reader: Labels) -> Sample:
    if not isinstance(row, list) or not row or not all(isinstance(cell, str | int) for cell in row):
        raise DatasetError(f"{where}: expected a list of an emotion and paths, found {row!r:.60}; {_FETCH}")
    photo = next((cell for cell in row[1:] if isinstance(cell, str) and cell.lower().endswith((".jpg", ".png"))), None)
    if photo is None:
        raise DatasetError(f"{where}: no photo; {_FETCH}")
    photo = photo.replace("\\", "/")  # one release was written on Windows
    return Sample(photo, reader.targets([row[0]], where), inside(folder, photo, where), where=where)


def _multiemo_sample(row: Row, folder: Path, reader: Labels, annotators: int) -> Sample:
    photo = row.known.get("image")
    if not isinstance(photo, str) or not photo:
        raise DatasetError(f"{row.where}: no photo; {_FETCH}")
    asked = _count(row, "annotators", annotators)
    if asked < 1:
        raise DatasetError(f"{row.where}: {asked} annotators; {_FETCH}")
    targets = np.zeros(len(reader.taxonomy), dtype=np.float32)
    for index, name in enumerate(reader.taxonomy.names):
        votes = _count(row, name)
        if not 0 <= votes <= asked:
            raise DatasetError(f"{row.where}: {votes} votes for {name} by {asked} annotators; {_FETCH}")
        targets[index] = votes / asked
    return Sample(photo, targets, inside(folder, photo, row.where), where=row.where)


def _count(row: Row, column: str, default: int | None = None) -> int:
    """Parse an integer cell."""
    cell = next((value for name, value in row.other.items() if name.strip().casefold() == column), default)
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise DatasetError(f"{row.where}: column {column!r} is {cell!r:.40}, not a number of people; {_FETCH}")
    return int(number)
