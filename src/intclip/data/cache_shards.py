"""Shards of a feature cache: naming, files, checks, and division of work between processes.

A shard contains the features of consecutive photos in one view, in a folder named by a hash of everything that they
depend on: `<feature>.npy` with one row per photo, and `shard.json` with shapes, checksums and unreadable photos. A
folder with the right name that passes its checks is valid, whichever build wrote it. One or several processes fill a
cache. They exchange lists of missing shards and divide them; each builds its share, and all check again until none is
missing. A shard is built by one process, and its bytes do not depend on which. On a shared disk one round is enough. If
every machine has its own disk, each shard is built on one machine per round, and the others find it missing in the next
round, so each disk is filled by the processes that use it.
"""

import hashlib
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from intclip.data.images import read_bytes
from intclip.data.loading import usable_cores
from intclip.data.sample import ImageSource, TarMember
from intclip.errors import ImageError, StorageError
from intclip.files import digest, file_stamp, sha256_file, write_text

T = TypeVar("T")

FORMAT = 2
"""Version of the layout and of how photos are read (2: colour profiles); part of every name, so that a newer program
rebuilds and never misreads."""

Dtype = Literal["float16", "float32"]

DEFAULT_LIMIT = 20 * 10**9
"""Bytes that a cache folder may hold unless the caller says otherwise."""
SHARD_BYTES = 128 * 2**20
"""Target size of a shard: one sequential read."""
REMEMBERED = 2**17
"""Maximum photos whose hash is remembered: about 500 bytes each."""
SHARD_PHOTOS = 512
"""Maximum photos per shard: a few seconds of work, which is what a killed build loses."""

Arrays = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shard:
    """Rows `start` … `start + count` of the list of photos, in one view.

    Attributes:
        folder: Its folder, which may not exist yet.
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
        views: Views to store.
        size: Photos per shard; the last one may have fewer.
    """
    shards: dict[int, list[Shard]] = {}
    for view in views:
        shards[view] = []
        for start in range(0, len(photos), size):
            part = photos[start : start + size]
            # A view's seed includes the photo's index; the plain photo does not depend on its position.
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
        batches: (rows, features); rows that are not filled stay 0.

    Raises:
        FloatingPointError: A number is not finite in `dtype`; the message names the feature.
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
    """Write the manifest of a shard whose feature files are complete.

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
    """Read a shard's manifest; empty if missing or unparsable."""
    try:
        content = json.loads(shard.manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_whole(shard: Shard, *, checksums: bool) -> bool:
    """Return whether a shard's files exist and, with `checksums`, match their checksums."""
    features = read_manifest(shard).get("features", {})
    paths = {name: shard.path(name) for name in features}
    if not features or not all(path.is_file() for path in paths.values()):
        return False
    return not checksums or all(sha256_file(path) == features[name]["sha256"] for name, path in paths.items())


def missing_shards(shards: Iterable[Shard], *, checksums: bool, workers: int) -> list[Shard]:
    """Return the incomplete shards in order, see `is_whole`."""
    shards = list(shards)
    with ThreadPoolExecutor(workers) as pool:
        whole = pool.map(lambda shard: is_whole(shard, checksums=checksums), shards)
        return [shard for shard, is_good in zip(shards, whole, strict=True) if not is_good]


def photo_hashes(sources: Sequence[ImageSource | None], workers: int) -> list[str]:
    """Return every photo's content hash; a missing photo is hashed by its path.

    The process remembers the hashes: a training run needs them for its caches and for its fingerprint, and the next
    row of a study needs them again.
    """
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(_photo_hash, sources))


def _photo_hash(source: ImageSource | None) -> str:
    if source is not None:
        file = source if isinstance(source, Path) else source.archive if isinstance(source, TarMember) else source.table
        # An error is reported when the photo is read, and stored by the shard.
        with suppress(OSError, ImageError):
            return _content_hash(source, file_stamp(file))
    return f"absent {source}"


@lru_cache(maxsize=REMEMBERED)
def _content_hash(source: ImageSource, stamp: tuple[str | int, ...]) -> str:
    """Return the content hash of a photo in a file with this stamp."""
    return sha256_file(source) if isinstance(source, Path) else hashlib.sha256(read_bytes(source)).hexdigest()


class Crew(Protocol):
    """Processes that fill a cache together, such as `intclip.training.distributed.Processes`."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run a function in every process and return all results by rank; an error in one ends all."""


class Alone:
    """A single process."""

    rank = 0

    def each(self, work: Callable[[], T]) -> list[T]:
        """See `Crew.each`."""
        return [work()]


@dataclass(frozen=True)
class CacheFolder:
    """Where caches lie, and how what is missing comes there; one folder serves any number of keys, splits and runs.

    Attributes:
        path: The folder.
        limit: Bytes that it may hold, everything in it included.
        workers: Threads that read photos and shards; as many as there are usable cores by default.
        verify: Read all shards through and compare their checksums; about a second a gigabyte, and then they are in
            the system's memory. Without it, only the presence of files is checked.
        progress: Show a progress bar while building, if standard error is a terminal.
        crew: Processes that build together what is missing; all of them open the same caches.
    """

    path: Path
    limit: int = DEFAULT_LIMIT
    workers: int | None = None
    verify: bool = True
    progress: bool = True
    crew: Crew = field(default_factory=Alone)


def fill(
    home: Path,
    description: Mapping[str, object],
    shards: Iterable[Shard],
    build: Callable[[Shard], None],
    *,
    check_room: Callable[[Sequence[Shard]], None],
    how: CacheFolder,
) -> None:
    """Build the incomplete shards.

    Args:
        home: The key's folder.
        description: The key as plain JSON, for information.
        shards: All requested shards.
        build: Builds a shard atomically.
        check_room: Raises if the missing shards do not fit; called before building.
        how: The processes, and how they build; all of them call this for the same shards.

    Raises:
        StorageError: See `build` and `check_room`; in every process of the crew.
    """
    missing: dict[str, Shard] = {}
    crew = how.crew

    def look(candidates: Iterable[Shard], *, first: bool = False) -> dict[str, int]:
        """Return this process's missing shards: name to number of photos."""
        absent = missing_shards(candidates, checksums=how.verify, workers=how.workers or usable_cores())
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
        with _progress_bar(how.progress and crew.rank == 0) as bar:
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
    """Assign each shard to the process with the fewest photos so far among those that miss it.

    Args:
        lacks: By process: name to number of photos of its missing shards. Must be equal in all processes.

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
    """Check that the missing shards fit the cache's limit and the disk.

    Args:
        missing: Shards to build.
        folder: Folder of all caches.
        bytes_per_photo: Size of all features of one photo in one view.
        limit: Maximum bytes of the folder.

    Raises:
        StorageError: They do not fit.
    """
    needed = sum(shard.count for shard in missing) * bytes_per_photo
    held = _bytes_in(folder) - sum(_bytes_in(shard.folder) for shard in missing)
    what = (
        f"the feature cache {folder} needs {needed / 1e9:.2f} GB more ({sum(shard.count for shard in missing):,} photo "
        f"views of {bytes_per_photo / 1e3:.1f} kB)"
    )
    if held + needed > limit:
        raise StorageError(
            f"{what} and already uses {held / 1e9:.2f} GB of its limit of {limit / 1e9:.2f} GB; raise the limit, keep "
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
    """Remove partial files of killed builds; those younger than an hour may belong to another process."""
    for path in (*home.glob(".*.partial"), *home.glob(".*.replaced")):
        if path.is_dir() and time.time() - path.stat().st_mtime > 3600:
            shutil.rmtree(path, ignore_errors=True)


def _progress_bar(wanted: bool) -> Progress:
    return Progress(console=Console(stderr=True), transient=True, disable=not (wanted and sys.stderr.isatty()))
