"""Fill a feature cache: one process alone, or several that each compute a part of it.

The processes look for what is missing, tell each other and share the work; each builds its own shards, and all look
again, until nobody misses one. A shard is the work of one process, and its bytes do not depend on which. On a disk that
all of them see, one round does. Where every machine has a disk of its own, a shard goes to one machine a round, and the
others find it missing in the next: each disk is filled by the processes that see it, and nobody has to say which do.
"""

import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import Progress

from intclip.data.cache_shards import Shard, missing_shards
from intclip.errors import StorageError
from intclip.files import write_text

T = TypeVar("T")


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
