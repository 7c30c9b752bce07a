"""Split label cells of tables at ";", or at "|" or "," if the cells suggest it."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from intclip.data.reading import loader_option
from intclip.data.tables import Row
from intclip.errors import DatasetError
from intclip.labels.spelling import fold
from intclip.labels.taxonomy import Taxonomy

SEPARATORS = (";", ",", "|")
_WHOLE, _FRACTION = re.compile(r"^([0-9]+)\.0$"), re.compile(r"^[0-9]+\.[0-9]*[1-9]")
_log = logging.getLogger("intclip.data")
Tables = Mapping[str, Sequence[Row]]


def split_label_cells(tables: Tables, taxonomy: Taxonomy | None, separator: str | None, where: str) -> Tables:
    """Split label cells into lists; lists in JSON and Parquet are not changed.

    The default separator is ";", or "|" or "," if no cell has ";" and the parts between them are
    labels: with a taxonomy, if the parts are its labels and the whole cells are not; without one, if there are fewer
    distinct parts than distinct cells. Another separator than ";" is logged. Where all numbers are whole, one such as
    1.0, as spreadsheets write it, is the label 1, unless the taxonomy has 1.0.

    Args:
        tables: Split name to its rows.
        taxonomy: The labels, if given.
        separator: One of `SEPARATORS`, or None to detect it.
        where: The files, for messages.

    Raises:
        DatasetError: The separator is invalid.
    """
    if separator is not None and separator not in SEPARATORS:
        raise DatasetError(f"separator={separator!r}: choose one of {' '.join(SEPARATORS)}")
    cells = {cell for rows in tables.values() for row in rows for cell in _cells(row).values()}
    known = set() if taxonomy is None else {fold(name) for name in (*taxonomy.names, *taxonomy.aliases)}
    if separator is None:
        plural = any("labels" in row.known for rows in tables.values() for row in rows)
        separator = next((mark for mark in "|," if _splits(mark, cells, known, plural=plural)), ";")
        if separator != ";":
            keep = loader_option("separator", ";")
            _log.info("%s: labels are separated by %r; to keep it inside labels: %s", where, separator, keep)
    sign = separator
    versions = any(_FRACTION.match(part) for cell in cells for part in _parts(cell, sign))

    def label(part: str) -> str:
        return part if versions or fold(part) in known else _WHOLE.sub(r"\1", part)

    def split(row: Row) -> Row:
        parts = {kind: [label(part) for part in _parts(cell, sign)] or None for kind, cell in _cells(row).items()}
        return replace(row, known=row.known | parts)

    return {name: [split(row) for row in rows] for name, rows in tables.items()}


def _cells(row: Row) -> dict[str, str]:
    """Return plain-text label cells by kind of column."""
    found = {kind: row.known.get(kind) for kind in ("labels", "label")}
    return {kind: cell for kind, cell in found.items() if isinstance(cell, str) and not cell.strip().startswith("[")}


def _splits(sign: str, cells: set[str], known: set[str], *, plural: bool) -> bool:
    whole = {" ".join(cell.split()) for cell in cells if cell.strip()}
    joined = [cell for cell in whole if sign in cell]
    if not joined or any(";" in cell for cell in whole):
        return False
    if known:
        compound = [cell for cell in joined if fold(cell) not in known]
        return any(all(fold(part) in known for part in _parts(cell, sign)) for cell in compound)
    parts = {part for cell in whole for part in _parts(cell, sign)}
    # A column called "labels" has several; one called "label" may have names with commas.
    return len(parts) < len(whole) or (plural and len(parts) == len(whole))


def _parts(cell: str, sign: str) -> list[str]:
    return [part.strip() for part in cell.split(sign) if part.strip()]
