"""Read tables of photos, texts and labels: CSV, JSON lines, Parquet.

Columns are recognised by name, ignoring case (`columns` maps other names):

    photo   image, path, file, filename, file_name, image_path, photo    relative to the table's folder
    text    text, caption, description, post
    labels  labels, tags                             a list, or names joined by ';'
    label   label, class, category                   the same; where every row has exactly one, the task is single-label
    shares  soft_labels, votes, probabilities        label to share of votes, or K shares in the taxonomy's order
    or one column per label, with 0, 1, a share of votes, or nothing (or −1) for unknown
    split   split                                    train, val, test or another name
    id      id, post_id

An empty labels cell means that the row is unlabelled; `[]` that no label applies.

A .csv file's delimiter is a comma or, if its header has none, a semicolon or tab, as spreadsheets write
in many countries.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intclip.data.reading import loader_option, parse_json, read_text
from intclip.data.sample import EmbeddedPhoto
from intclip.errors import DatasetError, listed, reason
from intclip.extras import require

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "path", "file", "filename", "file_name", "image_path", "photo"),
    "text": ("text", "caption", "description", "post"),
    "labels": ("labels", "tags"),
    "label": ("label", "class", "category"),
    "shares": ("soft_labels", "votes", "probabilities"),
    "split": ("split",),
    "id": ("id", "post_id"),
}
"""Column names by meaning."""

LABEL_MARK = " (label)"
"""Appended to a label's name if another column has that name."""

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        where: File and row, for messages.
        known: Recognised columns under the names of `COLUMNS`.
        other: All other columns.
    """

    where: str
    known: dict[str, Any]
    other: dict[str, Any]


def read_rows(path: Path, *, columns: Mapping[str, str] | None = None, encoding: str = "utf-8-sig") -> list[Row]:
    """Read the rows of a table.

    Raises:
        DatasetError: The file is malformed or in an unknown format, or its columns are wrong.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        records = _read_csv(path, "\t" if suffix == ".tsv" else ",;\t", encoding)
    elif suffix in (".jsonl", ".ndjson"):
        records = _read_jsonl(path, encoding)
    elif suffix == ".parquet":
        records = _read_parquet(path)
    else:
        raise DatasetError(f"{path} is not a supported table; give one of {', '.join(SUFFIXES)}")
    if not records:
        raise DatasetError(f"{path} has no rows; write a header and one row per photo or text")
    names = list(dict.fromkeys(name for _, record in records for name in record))
    found = find_columns(names, columns, str(path))
    return [make_row(where, record, found) for where, record in records]


def make_row(where: str, record: Mapping[str, Any], columns: Mapping[str, str]) -> Row:
    """Divide a record into recognised columns (`columns`: kind to name) and others."""
    named = set(columns.values())
    return Row(
        where,
        {kind: record.get(column) for kind, column in columns.items()},
        {column: value for column, value in record.items() if column not in named},
    )


def find_columns(names: Sequence[str], columns: Mapping[str, str] | None, where: str) -> dict[str, str]:
    """Map the kinds of columns to their names in the file.

    Raises:
        DatasetError: `columns` names a missing column, or there is neither photo nor text.
    """
    columns = dict(columns or {})
    folded = {name.strip().casefold(): name for name in reversed(names)}
    found = {}
    for kind, aliases in COLUMNS.items():
        wanted = columns.pop(kind, None)
        if wanted is not None:
            if wanted not in names:
                raise DatasetError(f"{where} has no column {wanted!r}; its columns: {listed(names)}")
            found[kind] = wanted
        elif alias := next((alias for alias in aliases if alias in folded), None):
            found[kind] = folded[alias]
            if len(same := [name for name in names if name.strip().casefold() == alias]) > 1:
                raise DatasetError(f"{where}: columns {listed(same, quoted=True)} are both its {kind}; rename one")
    if columns:
        raise DatasetError(f"columns: unknown kind {next(iter(columns))!r}; choose from {', '.join(COLUMNS)}")
    if "image" not in found and "text" not in found:
        short = names[0] if names and len(names[0]) < 50 and names[0].isprintable() else "NAME"
        example = loader_option("columns", {"image": short})
        raise DatasetError(
            f"{where} has neither a photo column ({', '.join(COLUMNS['image'])}) nor a text column "
            f"({', '.join(COLUMNS['text'])}); its columns: {listed(names)}; rename one, or map it: {example}"
        )
    return found


def _read_csv(path: Path, delimiters: str, encoding: str) -> list[tuple[str, dict[str, Any]]]:
    text = read_text(path, encoding, encodable=True)
    header_line = re.match(r"[\r\n]*([^\r\n]*)", text)
    assert header_line is not None  # it matches even the empty string
    delimiter = next((mark for mark in delimiters if mark in header_line[1]), delimiters[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[str, dict[str, Any]]] = []
    header: list[str] | None = None
    try:
        for cells in reader:
            where = f"{path}, row {reader.line_num}"
            if not any(cell.strip() for cell in cells):  # spreadsheets write such rows after the last one
                continue
            if any("\0" in cell for cell in cells):
                raise DatasetError(f"{where}: contains a NUL byte; write the file again as UTF-8")
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    raise DatasetError(f"{where}: two columns have the same name; its columns: {listed(header)}")
                continue
            if len(cells) != len(header):
                raise DatasetError(
                    f"{where}: {len(cells)} cells for {len(header)} columns; put cells "
                    f"with '{delimiter}' or line breaks in double quotes"
                )
            records.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise DatasetError(f"{path}, row {reader.line_num}: not CSV ({error}); write it with a CSV writer") from error
    return records


def _read_jsonl(path: Path, encoding: str) -> list[tuple[str, dict[str, Any]]]:
    records = []
    for number, line in enumerate(read_text(path, encoding, encodable=True).split("\n"), 1):
        if line.strip():
            where = f"{path}, row {number}"
            record = parse_json(line, where)
            if not isinstance(record, dict):
                raise DatasetError(
                    f'{where}: expected an object such as {{"image": …, "labels": […]}}, found {record!r:.60}'
                )
            records.append((where, record))
    return records


def _read_parquet(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read the rows; embedded photos are referenced, not loaded."""
    parquet = require("pyarrow.parquet", "core")
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            photos = [field.name for field in schema if embeds_photos(field.type)]
            paths = [f"{name}.path" for name in photos if _has_path(schema.field(name).type)]
            table = file.read(columns=[*(name for name in schema.names if name not in photos), *paths])
            records = table.to_pylist() or [{} for _ in range(file.metadata.num_rows)]
    except Exception as error:  # Arrow raises its own and Python's errors on damaged files
        raise unreadable_parquet(str(path), error) from error
    for row, record in enumerate(records):
        for column in photos:
            inner = record.get(column)
            name = inner.get("path") if isinstance(inner, dict) else None
            record[column] = EmbeddedPhoto(path, column, row, name or f"row {row + 1}")
    return [(f"{path}, row {number}", record) for number, record in enumerate(records, 1)]


def unreadable_parquet(name: str, error: Exception) -> DatasetError:
    """Return the error for a Parquet file that Arrow cannot read."""
    return DatasetError(f"{name} is not a readable Parquet file ({reason(error)}); write it again")


def embeds_photos(kind: Any) -> bool:
    """Return whether an Arrow type contains files: bytes, or a struct with `bytes` as on the Hugging Face hub."""
    types = require("pyarrow", "core").types
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and embeds_photos(kind.field(place).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_path(kind: Any) -> bool:
    types = require("pyarrow", "core").types
    return bool(types.is_struct(kind) and kind.get_field_index("path") >= 0)
