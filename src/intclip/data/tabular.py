"""Datasets from tables of photos, texts and labels; see `intclip.data.tables` for their columns.

If no column has labels, each unrecognised column may be a label. With a taxonomy, those named
after its labels are. Without one, a column is a label if every cell is 0, 1, yes, no, a share, or unknown (empty, -1),
and at least one is known. A column without any 0, 1 or share (likes, dates, names) is ignored with a warning. A column
that mixes both may be a label with a typo or a count that is sometimes 0 or 1: it is an error, because either guess
could lose or invent labels.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.data.find import photo_beside
from intclip.data.label_cells import split_label_cells
from intclip.data.reading import (
    Labels,
    Missing,
    Splits,
    flat_taxonomy,
    loader_option,
    parse_json,
    settle_missing,
    share,
)
from intclip.data.sample import Dataset, EmbeddedPhoto, Sample, check_one_label
from intclip.data.splitting import deal
from intclip.data.tables import LABEL_MARK, SUFFIXES, Row, read_rows
from intclip.errors import DatasetError, listed
from intclip.labels import load_taxonomy
from intclip.labels.spelling import fold, spelling
from intclip.labels.taxonomy import Taxonomy

_EMPTY = ("nan", "null", "none", "<na>", "n/a", "#n/a")
"""Labels that are probably missing values, written as text."""
_LABEL_KINDS = ("labels", "label", "shares")

_log = logging.getLogger("intclip.data")


@dataclass(frozen=True)
class TableLayout:
    """How a table is written.

    Attributes:
        columns: Kind of a column (a key of `COLUMNS`) to its name in the file.
        images: Folder that the photos' paths are relative to; default: the table's folder.
        encoding: Encoding of CSV and JSON lines.
        separator: Separator of labels in a cell: ";", "," or "|"; default: detected, see `split_label_cells`.
    """

    columns: Mapping[str, str] | None = None
    images: str | os.PathLike[str] | None = None
    encoding: str = "utf-8-sig"
    separator: str | None = None


def load_table(
    root: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    taxonomy: str | Taxonomy | None = None,
    task: Literal["multilabel", "singlelabel"] | None = None,
    missing: Missing = "error",
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    positive_share: float = 0.5,
    layout: TableLayout = TableLayout(),
) -> Dataset:
    """Load a dataset from a table, or from one table per split.

    If columns are labels, a warning lists ignored columns.

    Args:
        root: A .csv, .tsv, .jsonl or .parquet file; a folder with `train.*`, `val.*`, `test.*`; or split name to file.
        taxonomy: Name or file of the taxonomy; default: the labels found, in alphabetical order.
        task: "singlelabel" if exactly one label applies; default: by the taxonomy and the rows.
        missing: How to treat missing photos.
        shares: Proportions for splitting a table without a split column, such as {"train": 0.8, "test": 0.2}; otherwise
            all is "train".
        seed: Seed of that deal.
        positive_share: From which share of votes on a label counts.
        layout: How the table is written; `load_dataset` takes its fields as options.

    Raises:
        DatasetError: A file is missing or malformed, or a column or label is wrong.
    """
    files = table_files(root)
    where = str(root) if not isinstance(root, Mapping) else ", ".join(map(str, files.values()))
    tables = {split: read_rows(path, columns=layout.columns, encoding=layout.encoding) for split, path in files.items()}
    bases = {split: path.parent if layout.images is None else Path(layout.images) for split, path in files.items()}
    first = next(iter(files.values()))
    dataset = dataset_from_rows(
        tables, bases, name=first.stem if len(files) == 1 else first.parent.name, where=where,
        taxonomy=taxonomy, task=task, positive_share=positive_share, separator=layout.separator,
    )  # fmt: skip
    splits = deal(dataset.splits, shares, seed, where)
    return replace(dataset, splits=settle_missing(splits, missing, where, "correct the paths"))


def table_files(root: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]) -> dict[str, Path]:
    """Map split names to tables; a single file is "train" unless it has a split column.

    Raises:
        DatasetError: The file is missing, or the folder has no table named after a split.
    """
    if isinstance(root, Mapping):
        files = {str(split): Path(path) for split, path in root.items()}
    elif Path(root).is_dir():
        candidates = {
            split: [Path(root) / f"{split}{suffix}" for suffix in SUFFIXES] for split in ("train", "val", "test")
        }
        files = {split: path for split, paths in candidates.items() for path in paths if path.is_file()}
        if not files:
            raise DatasetError(f"{root} has no table; expected train, val or test with one of {', '.join(SUFFIXES)}")
    else:
        files = {"train": Path(root)}
    for path in files.values():
        if not path.is_file():
            raise DatasetError(f"no such table: {path}; check the path")
    return files


def dataset_from_rows(
    tables: Mapping[str, Sequence[Row]],
    bases: Mapping[str, Path],
    *,
    name: str,
    where: str,
    taxonomy: str | Taxonomy | None,
    task: Literal["multilabel", "singlelabel"] | None = None,
    positive_share: float = 0.5,
    separator: str | None = None,
) -> Dataset:
    """Make a dataset from rows; see `load_table`. A row's split overrides its table's."""
    if isinstance(taxonomy, str):
        taxonomy = load_taxonomy(taxonomy)
    tables = split_label_cells(tables, taxonomy, separator, where)
    rows = [row for table in tables.values() for row in table]
    wide = _wide_columns(rows, taxonomy)
    if taxonomy is None:
        taxonomy = flat_taxonomy(_labels_found(rows, wide), where, name)
    reader = Labels(taxonomy)
    splits: Splits = {}
    ids: dict[str, Row] = {}
    for table, split_rows in tables.items():
        for row in split_rows:
            sample = _sample(row, bases[table], reader, wide)
            if sample.id in ids:
                sample = _settle_twin(sample, row, ids)
            ids[sample.id] = row
            splits.setdefault(str(row.known.get("split") or "").strip() or table, []).append(sample)
    if task is None:
        task = "singlelabel" if taxonomy.exclusive or _one_label_each(rows) else "multilabel"
    if task == "singlelabel":
        for samples in splits.values():
            check_one_label(samples, taxonomy, "allow several: a taxonomy without `exclusive`, or task='multilabel'")
    return Dataset(name, taxonomy, task, splits, positive_share)


def _wide_columns(rows: Sequence[Row], taxonomy: Taxonomy | None) -> dict[str, str]:
    """Map columns that are labels to these labels; empty if there is a labels or shares column."""
    if any(kind in row.known for row in rows for kind in _LABEL_KINDS):
        return {}
    names = list(dict.fromkeys(name for row in rows for name in row.other))
    if taxonomy is not None:
        words = {fold(n): n for n in (*taxonomy.names, *taxonomy.aliases)}
        spellings = words | {f"{word}{LABEL_MARK}": name for word, name in words.items()}
        wide = {name: spellings[key] for name in names if (key := fold(name)) in spellings}
        _refuse_twice(wide, taxonomy, rows[0].where.rpartition(", ")[0])
        for name in names:
            near = get_close_matches(fold(name), words, n=1, cutoff=0.8) if name not in wide else []
            if near:
                raise DatasetError(
                    f"{rows[0].where.rpartition(', ')[0]}: column {name!r} is not a label of "
                    f"{taxonomy.name}; did you mean {words[near[0]]!r}? Rename it"
                )
    else:
        wide = {name: name.removesuffix(LABEL_MARK) for name in names if _is_label(rows, name)}
    where = rows[0].where.rpartition(", ")[0]
    if not wide:
        raise DatasetError(
            f"{where} has no labels: neither a column labels or label, "
            f"nor one column per label with 0 or 1; its other columns: {listed(names)}"
        )
    if others := [name for name in names if name not in wide]:
        reason = "hold no 0, 1 or share" if taxonomy is None else f"are not labels of {taxonomy.name}"
        _log.warning("%s: ignored columns that %s: %s", where, reason, listed(others))
    return wide


def _refuse_twice(wide: Mapping[str, str], taxonomy: Taxonomy, where: str) -> None:
    """Reject two columns of one label, by its name and an alias."""
    owner: dict[int, str] = {}
    for column, label in wide.items():
        first = owner.setdefault(taxonomy.index(label), column)
        if first != column:
            raise DatasetError(
                f"{where}: columns {first!r} and {column!r} are both label {taxonomy.names[taxonomy.index(label)]!r} "
                f"of {taxonomy.name}; merge them, or remove one"
            )


def _is_label(rows: Sequence[Row], column: str) -> bool:
    """Return whether a column is a label; see the module's docstring.

    Raises:
        DatasetError: Only some of its cells are.
    """
    if not column.strip():  # row numbers written by pandas
        return False
    known: list[Row] = []
    wrong: list[DatasetError] = []
    for row in rows:
        try:
            if not np.isnan(share(row.other.get(column), f"{row.where}, column {column!r}")):
                known.append(row)
        except DatasetError as error:
            wrong.append(error)
    if known and wrong:
        raise DatasetError(
            f"{wrong[0]}. The column counts as a label because {known[0].where} has {known[0].other[column]!r:.20}; "
            f"if it is not one, remove it, or list the labels: {loader_option('taxonomy', 'labels.yaml')}"
        )
    return bool(known)


def _labels_found(rows: Sequence[Row], wide: Mapping[str, str]) -> list[str]:
    found: set[str] = set(wide.values())
    for row in rows:
        found.update(spelling(label) for label in _label_list(row) or () if isinstance(label, str))
        shares = _share_map(row)
        if isinstance(shares, dict):
            found.update(spelling(str(label)) for label in shares)
    if not found:
        raise DatasetError(f"{rows[0].where}: no row has a label; write label names, or pass the taxonomy")
    if empty := sorted(name for name in found if name.casefold() in _EMPTY):
        where = rows[0].where.rpartition(", ")[0]
        _log.warning("%s: %s is a label here; if it means no value, empty its cells", where, listed(empty, quoted=True))
    return sorted(found)


def _label_list(row: Row) -> list[Any] | None:
    """Return the labels of a row's labels or label cell; None if unlabelled."""
    cell = row.known["labels"] if "labels" in row.known else row.known.get("label")
    if isinstance(cell, str):
        cell = cell.strip()
        try:
            cell = parse_json(cell, row.where)
        except DatasetError as error:  # pandas writes lists as ['joy', 'fear']
            wanted = "write names joined by ';', or a JSON list with double quotes"
            raise DatasetError(f"{row.where}, labels {cell!r:.40}: not JSON; {wanted}") from error
    if cell is None:
        return None
    if isinstance(cell, float) and cell.is_integer():  # as spreadsheets write numbers
        cell = int(cell)
    return list(cell) if isinstance(cell, list | tuple) else [cell]


def _share_map(row: Row) -> Any:
    cell = row.known.get("shares")
    if isinstance(cell, str):
        return parse_json(cell, f"{row.where}, shares {cell!r:.40}") if cell.strip() else None
    return cell


def _sample(row: Row, base: Path, reader: Labels, wide: Mapping[str, str]) -> Sample:
    image, text = row.known.get("image"), row.known.get("text")
    embedded = image if isinstance(image, EmbeddedPhoto) else None
    image = embedded.name if embedded is not None else image
    for kind, value in (("photo", image), ("text", text)):
        if value is not None and not isinstance(value, str):
            raise DatasetError(f"{row.where}: its {kind} is {value!r:.60}, not text; write a path or a text")
    if not image and not text:
        raise DatasetError(f"{row.where}: neither photo nor text; fill one in or remove the row")
    if image and "\0" in image:
        raise DatasetError(f"{row.where}: {image!r:.60} is not a path; correct it")
    given = row.known.get("id")
    return Sample(
        id=str(given) if given not in (None, "") else image or row.where.rpartition(", ")[2],
        targets=_targets(row, reader, wide),
        image=embedded or (photo_beside(base, image) if image else None),
        text=text or None,
        where=row.where,
    )


def _targets(row: Row, reader: Labels, wide: Mapping[str, str]) -> npt.NDArray[np.float32]:
    targets = reader.unknown()
    for column, label in wide.items():
        targets[reader.index(label, row.where)] = share(row.other.get(column), f"{row.where}, column {column!r}")
    labels = _label_list(row)
    if labels is not None:
        targets = reader.targets(labels, row.where)
    shares = _share_map(row)
    if isinstance(shares, dict):
        targets = np.zeros_like(targets) if labels is None else targets
        for label, value in shares.items():
            # In Parquet every row has all fields of a struct column; None means that the row does not have this label.
            if value is not None:
                targets[reader.index(label, row.where)] = share(value, row.where)
    elif isinstance(shares, list | tuple):
        if len(shares) != len(targets):
            raise DatasetError(
                f"{row.where}: {len(shares)} shares for {len(targets)} labels; give one for each, or names"
            )
        targets = np.array([share(value, row.where) for value in shares], dtype=np.float32)
    elif shares is not None:
        raise DatasetError(f"{row.where}: {shares!r:.60} is neither label to share nor a list of shares")
    return targets


def _settle_twin(sample: Sample, row: Row, ids: Mapping[str, Row]) -> Sample:
    """Resolve equal ids: a photo in two posts or splits is two samples; labels spread over rows are an error.

    (`intclip data check` reports photos in two splits.)
    """
    first = ids[sample.id]
    if row.known.get("id") not in (None, ""):
        raise DatasetError(f"{row.where}: id {sample.id!r} is already used ({first.where}); make ids unique")
    same_split = first.where.rpartition(", ")[0] == row.where.rpartition(", ")[0] and all(
        first.known.get(kind) == row.known.get(kind) for kind in ("split", "text")
    )
    if same_split:
        raise DatasetError(
            f"{row.where}: {sample.id!r} is already used ({first.where}); "
            "give a photo one row and join its labels with ';'"
        )
    number = 2
    while f"{sample.id}#{number}" in ids:
        number += 1
    return replace(sample, id=f"{sample.id}#{number}")


def _one_label_each(rows: Sequence[Row]) -> bool:
    if any("label" not in row.known or "labels" in row.known for row in rows):
        return False
    counts = {len(labels) for row in rows if (labels := _label_list(row)) is not None}
    return counts == {1}
