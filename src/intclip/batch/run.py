"""Compute the missing shards of a batch job, in one process or with Ray, with progress on disk."""

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from intclip.batch.duplicates import write_duplicates
from intclip.batch.job import PROGRESS, Job, lock_job, read_job
from intclip.batch.mapper import ShardMapper, done_shard
from intclip.batch.shards import ShardInfo, read_shard
from intclip.errors import IntclipError, StorageError
from intclip.extras import require
from intclip.files import write_text

Runner = Literal["local", "ray"]
Progress = Callable[[int, int], None]
_WRITE_EVERY = 2.0  # seconds between two writes of the progress file


@dataclass(frozen=True)
class Summary:
    """Result of a run.

    Attributes:
        photos: Number of photos in the whole job.
        computed: Photos computed by this run.
        errors: Unreadable photos in the whole job.
        seconds: Duration of this run.
        duplicates: Duplicates by kind; empty without deduplication.
    """

    photos: int
    computed: int
    errors: int
    seconds: float
    duplicates: dict[str, int] = field(default_factory=dict)


def run_job(
    job: Job,
    *,
    runner: Runner = "local",
    workers: int | None = None,
    retry_errors: bool = False,
    check: bool = False,
    on_progress: Progress | None = None,
) -> Summary:
    """Compute missing shards.

    Args:
        job: The planned job.
        runner: "local" (this process) or "ray" (workers of a Ray cluster, started locally if there is none).
        workers: Threads that read photos (local), or processes (ray).
        retry_errors: Recompute shards with unreadable photos.
        check: Verify existing shards, and recompute damaged ones.
        on_progress: Called with completed and total photos.

    Raises:
        StorageError: Another process is using the job, or its folder cannot be written.
        MissingExtraError: Ray is not installed.
        IntclipError: The model cannot be loaded, or Ray cannot be started or joined.
    """
    with lock_job(job.folder):
        start = time.monotonic()
        for leftover in job.folder.rglob(".*.partial"):
            leftover.unlink(missing_ok=True)
        missing = _missing(job, retry_errors=retry_errors, check=check)
        total = job.manifest.photos
        todo = sum(_size(job, number) for number in missing)
        progress = _Progress(job.folder / PROGRESS, total - todo, total, on_progress)
        done = 0
        if missing:
            progress.tell(done)
            for info in _local(job, missing, workers, progress) if runner == "local" else _ray(job, missing, workers):
                done += info.rows
                progress.tell(done)
            progress.tell(done, last=True)
        infos = [done_shard(job, number) for number in range(len(job.manifest.shards))]
        whole = [info for info in infos if info is not None]
        if len(whole) < len(infos):
            raise StorageError(f"{job.folder}: {len(infos) - len(whole)} shards are missing; run it again")
        repeats = write_duplicates(job) if job.manifest.options.dedupe != "off" else {}
        errors = sum(info.errors for info in whole)
        return Summary(total, todo, errors, time.monotonic() - start, repeats)


def _missing(job: Job, *, retry_errors: bool, check: bool) -> list[int]:
    missing = []
    for number in range(len(job.manifest.shards)):
        info = done_shard(job, number)
        if info is None or (retry_errors and info.errors) or (check and not _reads(job.shard_path(number))):
            missing.append(number)
    return missing


def _reads(path: Path) -> bool:
    try:
        read_shard(path)
    except StorageError:
        return False
    return True


def _size(job: Job, number: int) -> int:
    part = job.manifest.shards[number]
    return part.stop - part.start


def _local(job: Job, missing: Sequence[int], workers: int | None, progress: "_Progress") -> Iterator[ShardInfo]:
    mapper = ShardMapper(job, workers=workers)
    done = 0

    def within(rows: int) -> None:
        progress.tell(done + rows)

    for number in missing:
        info = mapper(number, within)
        done += info.rows
        yield info


class RayWorker:
    """`ShardMapper` for Ray Data, in a separate process; only folder, shard number and counts are exchanged."""

    def __init__(self) -> None:
        self._mapper: ShardMapper | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Compute one shard; return errors as text, since Ray would wrap them in a traceback."""
        try:
            if self._mapper is None:
                os.chdir(item["home"])  # relative paths refer to where the job was started
                self._mapper = ShardMapper(read_job(item["folder"]), workers=1, threads=1)
            return vars(self._mapper(int(item["shard"]))) | {"failure": ""}
        except IntclipError as error:
            failure = str(error)
        except MemoryError:
            failure = "a worker is out of memory; use fewer workers, or a smaller --batch-size"
        return vars(ShardInfo("", 0, 0, 0, 0.0)) | {"failure": failure}


def _ray(job: Job, missing: Sequence[int], workers: int | None) -> Iterator[ShardInfo]:
    """Compute the shards with Ray Data: dead workers are restarted and their shards reassigned."""
    ray = require("ray", "ray")
    data = require("ray.data", "ray")
    own = not ray.is_initialized()
    if own:
        quiet = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        here = os.environ.get("RAY_ADDRESS") is None
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's default of 15 starves its workers next to other work
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # disable telemetry
        alone = {"address": "local", "num_cpus": (workers or os.cpu_count() or 1) + 1}
        try:
            ray.init(**(quiet | alone if here else quiet))
        except (OSError, RuntimeError, ValueError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise IntclipError(f"Ray cannot be started or joined: {reason}; or use --runner local") from error
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    count = min(len(missing), workers or max(1, int(ray.cluster_resources().get("CPU", 2)) - 1))
    device = job.manifest.options.model.device
    try:
        folder, home = str(job.folder.absolute()), str(Path.cwd())
        items = data.from_items(
            [{"folder": folder, "home": home, "shard": number} for number in missing], override_num_blocks=len(missing)
        )
        results = items.map(
            RayWorker,
            compute=data.ActorPoolStrategy(size=count),
            num_cpus=1,
            num_gpus=1 if device.startswith("cuda") else 0,
        )
        for row in results.iter_rows():
            if failure := row.pop("failure"):
                raise IntclipError(failure)
            yield ShardInfo(**row)
    finally:
        if own:
            ray.shutdown()


class _Progress:
    """Reports completed photos to the caller and, every few seconds, to the progress file."""

    def __init__(self, path: Path, before: int, total: int, report: Progress | None) -> None:
        self._path, self._before, self._total, self._report = path, before, total, report
        self._start = time.monotonic()  # not affected by changes of the system clock
        self._written = -_WRITE_EVERY

    def tell(self, computed: int, *, last: bool = False) -> None:
        """Record the number of photos computed by this run."""
        now = time.monotonic() - self._start
        if self._report is not None:
            self._report(self._before + computed, self._total)
        if not last and now - self._written < _WRITE_EVERY:
            return
        self._written = now
        rate = round(computed / now, 2) if computed and now > 0 else None
        content = {
            "pid": os.getpid(),
            "done": self._before + computed,
            "photos": self._total,
            "photos_per_second": rate,
            "updated": time.time(),
        }
        write_text(self._path, json.dumps(content) + "\n")
