"""Shards of a feature cache: what a shard's numbers depend on, its files, and their checks.

A shard holds the features of a run of photos in one view, in a folder named by a hash of everything that its numbers
depend on: `<feature>.npy` with a row a photo, and `shard.json` with shapes, checksums and the photos that could not be
read. A folder that bears the right name and passes its checks is right, so a build never asks what an earlier one did.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.data.cache_key import FORMAT, Dtype, digest
from intclip.data.images import read_bytes
from intclip.data.sample import ImageSource
from intclip.errors import ImageError
from intclip.files import sha256_file

SHARD_BYTES = 128 * 2**20
"""No shard is much larger: what one sequential read brings."""
SHARD_PHOTOS = 512
"""Nor has more photos: some seconds of work, what a killed build loses and what processes share a cache out by."""

Arrays = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shard:
    """Rows `start` … `start + count` of the list of photos, in one view.

    Attributes:
        folder: Where it lies, or will.
        view: 0 is un-augmented.
        start: Index of its first photo.
        count: Number of its photos.
    """

    folder: Path
    view: int
    start: int
    count: int

    @property
    def indices(self) -> range:
        """Indices of its photos."""
        return range(self.start, self.start + self.count)

    def path(self, feature: str) -> Path:
        """File of one feature."""
        return self.folder / f"{feature}.npy"

    @property
    def manifest(self) -> Path:
        """File of shapes, checksums and errors."""
        return self.folder / "shard.json"


def plan(
    folder: Path, photos: Sequence[str], views: Sequence[int], size: int, augmentation: object
) -> dict[int, list[Shard]]:
    """Shards of `size` photos for every view.

    Args:
        folder: The key's folder.
        photos: Content hash of every photo, see `photo_hashes`.
        augmentation: The augmentation's options and seed as plain data; it matters to every view but 0.
        views: Views to hold.
        size: Photos in a shard; the last one may hold fewer.
    """
    shards: dict[int, list[Shard]] = {}
    for view in views:
        shards[view] = []
        for start in range(0, len(photos), size):
            part = photos[start : start + size]
            # A view's seed has the photo's index in it; the plain photo is the same wherever it stands.
            name = digest([view, start, augmentation, list(part)] if view else list(part))[:32]
            shards[view].append(Shard(folder / name, view, start, len(part)))
    return shards


def write_shard(
    folder: Path, shapes: Shapes, dtype: Dtype, count: int, batches: Iterable[tuple[npt.NDArray[np.int64], Arrays]]
) -> None:
    """Write the feature files of one shard, batch by batch; the manifest comes last, by `seal`.

    Args:
        folder: An empty folder.
        shapes: Feature to its shape without the batch.
        dtype: Numbers on disk.
        count: Rows.
        batches: (rows, features) that fill some rows; rows that none fills stay 0.

    Raises:
        FloatingPointError: A finite number became infinite in `dtype`, or was none; the message names the feature.
    """
    files = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(count, *shape))
        for name, shape in shapes.items()
    }
    for rows, arrays in batches:
        for name, file in files.items():
            with np.errstate(over="ignore"):
                values = arrays[name].astype(dtype)
            if not np.isfinite(values).all():
                raise FloatingPointError(name)
            file[rows] = values
    for file in files.values():
        file.flush()


def seal(folder: Path, shapes: Shapes, errors: Mapping[int, str]) -> None:
    """Write the manifest of a shard whose feature files are whole.

    Args:
        folder: The shard's folder.
        shapes: Feature to its shape without the batch.
        errors: Row to why its photo could not be read.
    """
    features = {
        name: {"shape": list(shape), "sha256": sha256_file(folder / f"{name}.npy")} for name, shape in shapes.items()
    }
    content = {"format": FORMAT, "features": features, "errors": {str(row): text for row, text in errors.items()}}
    (folder / "shard.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


def read_manifest(shard: Shard) -> dict[str, Any]:
    """A shard's manifest; empty when there is none or it cannot be parsed."""
    try:
        content = json.loads(shard.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_whole(shard: Shard, *, checksums: bool) -> bool:
    """Whether a shard's files are there and, with `checksums`, hold what was written."""
    features = read_manifest(shard).get("features", {})
    paths = {name: shard.path(name) for name in features}
    if not features or not all(path.is_file() for path in paths.values()):
        return False
    return not checksums or all(sha256_file(path) == features[name]["sha256"] for name, path in paths.items())


def missing_shards(shards: Iterable[Shard], *, checksums: bool, workers: int) -> list[Shard]:
    """Those that are not whole, see `is_whole`, in their order."""
    shards = list(shards)
    with ThreadPoolExecutor(workers) as pool:
        whole = pool.map(lambda shard: is_whole(shard, checksums=checksums), shards)
        return [shard for shard, is_good in zip(shards, whole, strict=True) if not is_good]


def photo_hashes(sources: Sequence[ImageSource | None], workers: int) -> list[str]:
    """Content hash of every photo; a photo that is not there hashes to its path."""
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_photo_hash, sources))


def _photo_hash(source: ImageSource | None) -> str:
    try:
        if isinstance(source, Path):
            return sha256_file(source)
        if source is not None:
            return hashlib.sha256(read_bytes(source)).hexdigest()
    except (OSError, ImageError):
        pass  # the reader of photos says what is wrong with it, and the shard keeps what it said
    return f"absent {source}"
