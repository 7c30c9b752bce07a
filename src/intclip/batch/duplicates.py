"""Mark duplicates among the photos of a finished job: equal bytes, or near duplicates."""

import numpy as np
import numpy.typing as npt

from intclip.batch.job import Job
from intclip.batch.shards import read_shard
from intclip.data.duplicates import NEAR_BITS as NEAR_BITS
from intclip.data.duplicates import near_groups
from intclip.extras import require
from intclip.files import atomic_path

DUPLICATES = "duplicates.parquet"


def write_duplicates(job: Job) -> dict[str, int]:
    """Write `duplicates.parquet`: a row for every duplicate of an earlier photo.

    Columns: row, first (the earliest photo of its group, both positions in the inputs), kind ("content" for equal
    bytes, else "perceptual").

    Returns:
        Number of photos by kind.

    Raises:
        StorageError: A shard is damaged, or the file cannot be written.
    """
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    first, kind = find_duplicates(*_hashes(job))
    rows = np.flatnonzero(first != np.arange(len(first)))
    kinds = np.where(kind[rows], "content", "perceptual")
    table = arrow.table({"row": rows.astype(np.int64), "first": first[rows], "kind": kinds.tolist()})
    with atomic_path(job.folder / DUPLICATES) as partial:
        parquet.write_table(table, partial, compression="zstd")
    return {name: int((kinds == name).sum()) for name in ("content", "perceptual")}


def find_duplicates(
    contents: npt.NDArray[np.bytes_], hashes: npt.NDArray[np.uint64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return the earliest photo of every photo's group.

    Groups are connected components of near duplicates, so photos of a group may differ in more bits than linked pairs
    do.

    Args:
        contents: (N,) content hashes, empty for unreadable photos.
        hashes: (N, 2) perceptual hashes, zeros if there is none; None compares only contents.

    Returns: (N,) the earliest row of each row's group, possibly itself; and (N,) whether a row's bytes equal an earlier
    row's.
    """
    rows = np.arange(len(contents), dtype=np.int64)
    _, starts, groups = np.unique(contents, return_index=True, return_inverse=True)
    same = np.where(contents == b"", rows, starts[groups])
    first = same.copy()
    if hashes is not None:
        candidates = np.flatnonzero(same == rows)
        _, starts, groups = np.unique(near_groups(hashes[candidates]), return_index=True, return_inverse=True)
        first[candidates] = candidates[starts[groups]]
        first = first[same]
    return first, same != rows


def _hashes(job: Job) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.uint64] | None]:
    perceptual = job.manifest.options.dedupe == "perceptual"
    contents = np.zeros(job.manifest.photos, dtype="S64")
    hashes = np.zeros((job.manifest.photos, 2), dtype=np.uint64) if perceptual else None
    for number, part in enumerate(job.manifest.shards):
        table = read_shard(job.shard_path(number), ["content", "perceptual_hash"])
        # In hex, because NumPy's byte strings drop trailing zeros.
        contents[part.start : part.stop] = [(value or b"").hex() for value in table["content"].to_pylist()]
        if hashes is not None:
            blobs = b"".join(value or bytes(16) for value in table["perceptual_hash"].to_pylist())
            hashes[part.start : part.stop] = np.frombuffer(blobs, dtype=">u8").reshape(-1, 2)
    return contents, hashes
