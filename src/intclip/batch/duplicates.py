"""Which photos of a finished job repeat which: equal bytes, or nearly equal looks."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from intclip.batch.job import Job
from intclip.batch.shards import read_shard
from intclip.data.check import NEAR_BITS
from intclip.extras import require
from intclip.files import atomic_path

DUPLICATES = "duplicates.parquet"
_INFORMATIVE = 20  # set bits; a hash with fewer, as of a blank page, says little
_BANDS = NEAR_BITS + 1  # hashes that differ in at most NEAR_BITS bits agree in at least one band


def write_duplicates(job: Job) -> dict[str, int]:
    """Write `duplicates.parquet`: a row for every photo that repeats an earlier one.

    Columns: row, first (the earliest photo of its group, both positions in the inputs), kind ("content" where the bytes
    are equal, else "perceptual").

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
    contents: npt.NDArray[np.bytes_], looks: npt.NDArray[np.uint64] | None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The earliest photo of every photo's group.

    Near looks link photos into groups, so that a group may hold photos that differ in more bits than two neighbours do.

    Args:
        contents: (N,) content hashes, empty where a photo could not be read.
        looks: (N, 2) perceptual hashes, zeros where there is none; None compares contents only.

    Returns:
        (N,) the earliest row of each row's group, itself where it repeats nothing; and (N,) whether a row's bytes are
        equal to an earlier row's.
    """
    rows = np.arange(len(contents), dtype=np.int64)
    _, starts, groups = np.unique(contents, return_index=True, return_inverse=True)
    same = np.where(contents == b"", rows, starts[groups])
    first = same.copy()
    if looks is not None:
        informative = np.bitwise_count(looks).sum(axis=1) >= _INFORMATIVE
        candidates = np.flatnonzero(informative & (same == rows))
        parent = rows.copy()

        def root(node: int) -> int:
            while parent[node] != node:
                parent[node] = parent[parent[node]]
                node = int(parent[node])
            return node

        for left, right in _near(looks[candidates]):
            low, high = sorted((root(int(candidates[left])), root(int(candidates[right]))))
            parent[high] = low
        first = np.array([root(int(row)) for row in same], dtype=np.int64)
    return first, same != rows


def _near(looks: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs of hashes that differ in at most NEAR_BITS bits, some of them twice.

    The 128 bits are cut into bands. Only hashes that agree in a band are compared, so that the work grows with the
    number of likely pairs and not with the square of the photos; no pair is missed.
    """
    bits = np.unpackbits(looks.astype(">u8").view(np.uint8), axis=1)
    for band in np.array_split(bits, _BANDS, axis=1):
        keys = np.packbits(band, axis=1)
        _, groups = np.unique(keys, axis=0, return_inverse=True)
        order = np.argsort(groups, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            for place in range(len(members) - 1):
                distance = np.bitwise_count(looks[members[place]] ^ looks[members[place + 1 :]]).sum(axis=1)
                for other in np.flatnonzero(distance <= NEAR_BITS):
                    yield int(members[place]), int(members[place + 1 + other])


def _hashes(job: Job) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.uint64] | None]:
    perceptual = job.manifest.options.dedupe == "perceptual"
    contents = np.zeros(job.manifest.photos, dtype="S64")
    looks = np.zeros((job.manifest.photos, 2), dtype=np.uint64) if perceptual else None
    for number, part in enumerate(job.manifest.shards):
        table = read_shard(job.shard_path(number), ["content", "look"])
        # In hex: NumPy's byte strings lose zeros at their end.
        contents[part.start : part.stop] = [(value or b"").hex() for value in table["content"].to_pylist()]
        if looks is not None:
            blobs = b"".join(value or bytes(16) for value in table["look"].to_pylist())
            looks[part.start : part.stop] = np.frombuffer(blobs, dtype=">u8").reshape(-1, 2)
    return contents, looks
