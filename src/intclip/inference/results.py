"""Predictions as JSON, CSV and Parquet, streamed, one row per photo."""

import contextlib
import csv
import json
import os
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from intclip.data.tables import COLUMNS, LABEL_MARK
from intclip.extras import require
from intclip.files import atomic_path, atomic_text

if TYPE_CHECKING:
    from intclip.inference.prediction import Prediction

FIXED_COLUMNS = ("source", "error", "labels")
"""Columns before the K probability columns; `labels` are the predicted ones."""
CONFLICT_COLUMN = "conflict"
"""Next column for models with photos and text; empty if a post has only one of them."""
LABEL_SEPARATOR = "; "
_RESERVED = {*FIXED_COLUMNS, CONFLICT_COLUMN, *(name for names in COLUMNS.values() for name in names)}
_ROWS_A_GROUP = 2048


class Writer(Protocol):
    """Writes predictions one by one."""

    def __call__(self, prediction: "Prediction") -> None:
        """Write one row."""
        ...


def score_columns(names: Sequence[str]) -> list[str]:
    """Return the column name of each label, marked if the name is reserved.

    Reserved are the columns of predictions, and those recognised in tables of posts (image, text and so
    on), which would be confused with a label's probabilities.
    """
    taken = {name.casefold() for name in names}
    columns = []
    for name in names:
        column = name
        if name.strip().casefold() in _RESERVED:
            column += LABEL_MARK
            while column.casefold() in taken:
                column += LABEL_MARK
        columns.append(column)
    return columns


def as_row(prediction: "Prediction", level: str | None = None) -> dict[str, Any]:
    """Return a prediction as JSON values, see `Prediction.to_dict`.

    Args:
        prediction: A prediction.
        level: Level of the taxonomy for the scores; labels are not affected.
    """
    row = prediction.to_dict()
    if level is not None and prediction.error is None:
        row["scores"] = prediction.level(level)
    return row


@contextlib.contextmanager
def json_writer(stream: IO[str], level: str | None = None) -> Iterator[Writer]:
    """Writes a JSON array of `as_row` objects, one per line."""
    count = 0

    def write(prediction: "Prediction") -> None:
        nonlocal count
        text = json.dumps(as_row(prediction, level), ensure_ascii=False)
        stream.write((",\n" if count else "[\n") + text)
        count += 1

    yield write
    stream.write("\n]\n" if count else "[]\n")


@contextlib.contextmanager
def csv_writer(
    path: str | os.PathLike[str], names: Sequence[str], level: str | None = None, *, conflict: bool = False
) -> Iterator[Writer]:
    """Write a CSV file atomically: `FIXED_COLUMNS`, optionally `CONFLICT_COLUMN`, then one column per name.

    Args:
        path: The file; pipes and "-" (standard output) receive rows immediately.
        names: Names of the labels or the level; for their columns see `score_columns`.
        level: See `as_row`.
        conflict: Include the conflict of photo and text.
    """
    with atomic_text(path) as stream:
        table = csv.writer(stream)
        table.writerow([*FIXED_COLUMNS, *((CONFLICT_COLUMN,) if conflict else ()), *score_columns(names)])

        def write(prediction: "Prediction") -> None:
            row = as_row(prediction, level)
            scores = row["scores"] or {}
            cells = [f"{scores[name]:.6g}" if name in scores else "" for name in names]
            if conflict:
                cells.insert(0, f"{row[CONFLICT_COLUMN]:.6g}" if CONFLICT_COLUMN in row else "")
            table.writerow([row["source"], row["error"] or "", LABEL_SEPARATOR.join(row["labels"]), *cells])

        yield write


@contextlib.contextmanager
def parquet_writer(
    path: str | os.PathLike[str], names: Sequence[str], level: str | None = None, *, conflict: bool = False
) -> Iterator[Writer]:
    """Write a Parquet file atomically: columns as in CSV, labels as a list of strings; arguments as there."""
    arrow = require("pyarrow", "core")
    parquet = require("pyarrow.parquet", "core")
    fields = [("source", arrow.string()), ("error", arrow.string()), ("labels", arrow.list_(arrow.string()))]
    if conflict:
        fields.append((CONFLICT_COLUMN, arrow.float32()))
    columns = score_columns(names)
    schema = arrow.schema([*fields, *((column, arrow.float32()) for column in columns)])
    with atomic_path(path) as partial, parquet.ParquetWriter(partial, schema, compression="zstd") as table:
        rows: list[dict[str, Any]] = []

        def flush() -> None:
            table.write_table(arrow.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(prediction: "Prediction") -> None:
            row = as_row(prediction, level)
            scores = row.pop("scores") or {}
            rows.append(row | {column: scores.get(name) for column, name in zip(columns, names, strict=True)})
            if len(rows) >= _ROWS_A_GROUP:
                flush()

        yield write
        flush()
