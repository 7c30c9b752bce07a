"""Shards on disk: one Parquet file for consecutive inputs, one row each."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.errors import StorageError
from intclip.extras import require
from intclip.files import atomic_path
from intclip.machine import memory_is_short

_META = b"intclip.batch"


@dataclass
class PhotoRow:
    """Result for one input.

    Attributes:
        path: Path as in the source.
        probabilities: (K,) float32; None if the photo could not be read.
        labels: Names at or above their thresholds.
        embedding: Unit vector (D,), if requested and the photo could be read.
        error: Why the photo could not be read.
        content: SHA-256 of the photo's bytes, with deduplication.
        perceptual_hash: 128-bit perceptual hash (16 bytes), with perceptual deduplication.
    """

    path: str
    probabilities: npt.NDArray[np.float32] | None = None
    labels: Sequence[str] = ()
    embedding: npt.NDArray[np.float32] | None = None
    error: str | None = None
    content: bytes | None = None
    perceptual_hash: bytes | None = None


@dataclass(frozen=True)
class ShardInfo:
    """The footer of a shard.

    Attributes:
        key: See `Manifest.key`.
        start: Its first input.
        rows: Number of rows.
        errors: Number of unreadable photos.
        finished: Time of writing, in seconds since 1970.
    """

    key: str
    start: int
    rows: int
    errors: int
    finished: float


def write_shard(path: Path, rows: Sequence[PhotoRow], *, labels: Sequence[str], dedupe: bool, info: ShardInfo) -> None:
    """Write a shard atomically.

    Columns: row (int64, the input's position), path, probabilities (K float32), labels, error, optional embedding (D
    float16), and with `dedupe` content and perceptual_hash. The schema's metadata has the names of the K labels under
    "labels".

    Raises:
        StorageError: It cannot be written.
    """
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    columns: dict[str, Any] = {
        "row": arrow.array(range(info.start, info.start + len(rows)), arrow.int64()),
        "path": arrow.array([row.path for row in rows], arrow.string()),
        "probabilities": _vectors([row.probabilities for row in rows], len(labels), arrow.float32()),
        "labels": arrow.array([list(row.labels) for row in rows], arrow.list_(arrow.string())),
        "error": arrow.array([row.error for row in rows], arrow.string()),
    }
    width = next((len(row.embedding) for row in rows if row.embedding is not None), None)
    if width is not None:
        columns["embedding"] = _vectors([row.embedding for row in rows], width, arrow.float16())
    if dedupe:
        columns["content"] = arrow.array([row.content for row in rows], arrow.binary(32))
        columns["perceptual_hash"] = arrow.array([row.perceptual_hash for row in rows], arrow.binary(16))
    meta = {_META: json.dumps(vars(info)), b"labels": json.dumps(list(labels), ensure_ascii=False)}
    table = arrow.table(columns).replace_schema_metadata(meta)
    with atomic_path(path) as partial:
        parquet.write_table(table, partial, compression="zstd", write_page_checksum=True)


def read_info(path: Path) -> ShardInfo | None:
    """Read a shard's footer; None if the shard is missing or incomplete."""
    parquet = require("pyarrow.parquet", "core")
    try:
        footer = parquet.read_metadata(path)
        info = ShardInfo(**json.loads(footer.metadata[_META]))
        return info if footer.num_rows == info.rows else None
    except Exception:  # Arrow raises its own and Python's errors on damaged files
        return None


def read_shard(path: Path, columns: Sequence[str] | None = None) -> Any:
    """Read a shard as an Arrow table, verifying page checksums.

    Raises:
        StorageError: It is missing or damaged.
    """
    parquet = require("pyarrow.parquet", "core")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=None if columns is None else list(columns))
    except Exception as error:
        if memory_is_short():
            raise MemoryError from error
        raise StorageError(f"{path} is damaged or missing; run the job again with --verify") from error


def to_matrix(column: Any) -> npt.NDArray[Any]:
    """Convert a column of N vectors to an array (N, D); NaN for null."""
    column = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    arrow = require("pyarrow", "core")
    values = column.values if isinstance(column, arrow.FixedSizeListArray) else column
    matrix: npt.NDArray[Any] = np.array(values.to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    matrix[np.asarray(column.is_null())] = np.nan
    return matrix


def _vectors(rows: Sequence[npt.NDArray[np.float32] | None], width: int, kind: Any) -> Any:
    """Convert vectors to a column of fixed-size lists, null for None."""
    arrow = require("pyarrow", "core")
    values = np.zeros((len(rows), width), dtype=kind.to_pandas_dtype())
    missing = np.zeros(len(rows), dtype=bool)
    for number, row in enumerate(rows):
        if row is None:
            missing[number] = True
        else:
            values[number] = row
    flat = arrow.array(values.reshape(-1), kind)
    return arrow.FixedSizeListArray.from_arrays(flat, width, mask=arrow.array(missing))
