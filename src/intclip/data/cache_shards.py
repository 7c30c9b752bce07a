"""Shards of a feature cache: what a shard's numbers depend on, its files, their checks, and who computes which.

A shard holds the features of a run of photos in one view, in a folder named by a hash of everything that its numbers
depend on: `<feature>.npy` with a row a photo, and `shard.json` with shapes, checksums and the photos that could not be
read. A folder that bears the right name and passes its checks is right, so a build never asks what an earlier one did.

One process fills a cache alone, or several each compute a part of it. They look for what is missing, tell each other
and share the work; each builds its own shards, and all look again, until nobody misses one. A shard is the work of one
process, and its bytes do not depend on which. On a disk that all of them see, one round does. Where every machine has a
disk of its own, a shard goes to one machine a round, and the others find it missing in the next: each disk is filled by
the processes that see it, and nobody has to say which do.
"""

import hashlib
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from intclip.backbones.content import digest
from intclip.data.images import read_bytes
from intclip.data.sample import ImageSource
from intclip.errors import ImageError, StorageError
from intclip.files import sha256_file, write_text

T = TypeVar("T")

FORMAT = 2
"""Version of the layout and of how photos are read (2: colour profiles); part of every name, so that a newer program
rebuilds and never misreads."""

Dtype = Literal["float16", "float32"]

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


class Crew(Protocol):
    """Processes that fill a cache together, such as `intclip.training.distributed.Processes`."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    def each(self, work: Callable[[], T]) -> list[T]:
        """What some work gives in every process, in order of rank, once all have done it; an error in one ends all."""


class Alone:
    """One process."""

    rank = 0

    def each(self, work: Callable[[], T]) -> list[T]:
        """See `Crew.each`."""
        return [work()]


def fill(
    home: Path,
    description: Mapping[str, object],
    shards: Iterable[Shard],
    build: Callable[[Shard], None],
    *,
    check_room: Callable[[Sequence[Shard]], None],
    verify: bool,
    workers: int,
    progress: bool,
    crew: Crew,
) -> None:
    """Build the shards that are not whole.

    Args:
        home: The key's folder.
        description: The key as plain JSON, for people.
        shards: All that are wanted.
        build: Makes one, whole or not at all.
        check_room: Raises where those that are missing do not fit; called before any is built.
        verify: Hold the shards that are there to their checksums.
        workers: Threads that read them.
        progress: Show a progress bar, if standard error is a terminal.
        crew: Who builds them; all of them call this for the same shards.

    Raises:
        StorageError: See `build` and `check_room`; in every process of the crew.
    """
    missing: dict[str, Shard] = {}

    def look(candidates: Iterable[Shard], *, first: bool = False) -> dict[str, int]:
        """What this process misses: names, and photos of each."""
        absent = missing_shards(candidates, checksums=verify, workers=workers)
        if first and absent:
            check_room(absent)
        missing.clear()
        missing.update({shard.folder.name: shard for shard in absent})
        return {name: shard.count for name, shard in missing.items()}

    def work(names: Sequence[str]) -> None:
        if not names:
            return
        write_text(home / "key.json", json.dumps(description, indent=1))
        _remove_leftovers(home)
        with _progress_bar(progress and crew.rank == 0) as bar:
            task = bar.add_task("caching features", total=sum(missing[name].count for name in names))
            for name in names:
                shard = missing.pop(name)
                build(shard)
                bar.advance(task, shard.count)

    lacks = crew.each(partial(look, shards, first=True))
    while any(lacks):
        crew.each(partial(work, share_out(lacks)[crew.rank]))
        lacks = crew.each(partial(look, list(missing.values())))


def share_out(lacks: Sequence[Mapping[str, int]]) -> list[list[str]]:
    """Who builds which shard: each goes to the process with the fewest photos so far among those that miss it.

    Args:
        lacks: By process: the names of the shards that it misses, and their photos. All processes must pass the same.

    Returns:
        Names by process; together each name once.
    """
    photos: dict[int, int] = defaultdict(int)
    shares: list[list[str]] = [[] for _ in lacks]
    for name, count in {name: count for lack in lacks for name, count in lack.items()}.items():
        rank = min((rank for rank, lack in enumerate(lacks) if name in lack), key=lambda rank: (photos[rank], rank))
        photos[rank] += count
        shares[rank].append(name)
    return shares


def check_room(missing: Sequence[Shard], folder: Path, bytes_per_photo: int, limit: int) -> None:
    """Check that what is missing fits a folder and its disk.

    Args:
        missing: Shards to build.
        folder: Folder of all caches.
        bytes_per_photo: Size of all features of one photo in one view.
        limit: Bytes that the folder may hold.

    Raises:
        StorageError: It does not.
    """
    needed = sum(shard.count for shard in missing) * bytes_per_photo
    held = _bytes_in(folder) - sum(_bytes_in(shard.folder) for shard in missing)
    what = (
        f"the feature cache {folder} needs {needed / 1e9:.2f} GB more ({sum(shard.count for shard in missing):,} photo "
        f"views of {bytes_per_photo / 1e3:.1f} kB)"
    )
    if held + needed > limit:
        raise StorageError(
            f"{what} and holds {held / 1e9:.2f} GB already, its limit is {limit / 1e9:.2f} GB; raise the limit, keep "
            "fewer views, cache in float16, remove old caches from that folder, or run with the cache off"
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise StorageError(
            f"{what}, the disk has {free / 1e9:.2f} GB free; free space, choose a cache folder on another disk, keep "
            "fewer views, or run with the cache off"
        )


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _remove_leftovers(home: Path) -> None:
    """Remove what killed builds began; what is younger than an hour may be another process's work."""
    for path in (*home.glob(".*.partial"), *home.glob(".*.replaced")):
        if path.is_dir() and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def _progress_bar(wanted: bool) -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty()))
