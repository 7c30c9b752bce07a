"""Verify that every input of a job has exactly one row; report a job's progress."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intclip.batch.job import LOCK, PROGRESS, SHARDS, Job, read_job
from intclip.batch.mapper import done_shard
from intclip.batch.shards import read_shard
from intclip.errors import StorageError
from intclip.files import is_locked


@dataclass(frozen=True)
class Verified:
    """Counts of `verify_job`.

    Attributes:
        photos: Inputs, each with exactly one row.
        errors: Rows of unreadable photos.
        shards: Checked files.
    """

    photos: int
    errors: int
    shards: int


def verify_job(job: Job) -> Verified:
    """Read every shard and compare its rows with the inputs, one to one and in order.

    Raises:
        StorageError: A shard is missing or damaged, has other rows than its inputs, or does not belong to the job.
    """
    errors = 0
    listed = {part.file for part in job.manifest.shards}
    for file in (job.folder / SHARDS).glob("*.parquet"):
        if file.name not in listed:
            raise StorageError(f"{file} is not a shard of this job; remove it")
    missing = [part.file for number, part in enumerate(job.manifest.shards) if done_shard(job, number) is None]
    if missing:
        raise StorageError(
            f"{job.folder}: {len(missing)} of {len(job.manifest.shards)} shards are not done ({missing[0]} is the "
            "first); run the job again"
        )
    end = 0
    for number, part in enumerate(job.manifest.shards):
        table = read_shard(job.shard_path(number))
        paths = [reference.path for reference in job.inputs(number)]
        rows = table["row"].to_numpy()
        if part.start != end or not np.array_equal(rows, np.arange(part.start, part.stop)):
            raise StorageError(
                f"{job.shard_path(number)} has other rows than {part.start} to {part.stop - 1}; remove it"
            )
        if table["path"].to_pylist() != paths:
            raise StorageError(f"{job.shard_path(number)} has other photos than its inputs; remove it")
        failed = table["error"].is_valid().to_numpy()
        if not np.array_equal(failed, table["probabilities"].is_null().to_numpy()):
            raise StorageError(f"{job.shard_path(number)} has rows with neither probabilities nor error; remove it")
        errors += int(failed.sum())
        end = part.stop
    if end != job.manifest.photos:
        raise StorageError(f"{job.folder}: the shards end at row {end} of {job.manifest.photos}; start the job again")
    return Verified(end, errors, len(job.manifest.shards))


def read_status(folder: str | Path) -> dict[str, Any]:
    """Return a job's progress from its files; the job may be running, here or elsewhere on a shared disk.

    Returns:
        state ("running", "finished" or "stopped"), photos, done, errors, shards, shards_done; from the last or current
        run: photos_per_second, seconds_left (None if unknown), updated (seconds ago).

    Raises:
        StorageError: The folder has no job.
    """
    job = read_job(folder)
    infos = [info for number in range(len(job.manifest.shards)) if (info := done_shard(job, number)) is not None]
    finished = len(infos) == len(job.manifest.shards)
    progress = _read_progress(job.folder / PROGRESS)
    running = is_locked(job.folder / LOCK)
    done = sum(info.rows for info in infos)
    if running:
        done = max(done, int(progress.get("done") or 0))  # includes the current shard
    rate, updated = progress.get("photos_per_second"), progress.get("updated")
    left = (job.manifest.photos - done) / rate if rate and running else None
    return {
        "state": "finished" if finished and not running else "running" if running else "stopped",
        "source": job.manifest.source,
        "model": job.manifest.options.model.spec,
        "photos": job.manifest.photos,
        "done": done,
        "errors": sum(info.errors for info in infos),
        "shards": len(job.manifest.shards),
        "shards_done": len(infos),
        "photos_per_second": rate,
        "seconds_left": None if left is None else round(left, 1),
        "updated": None if updated is None else round(time.time() - updated, 1),
    }


def _read_progress(path: Path) -> dict[str, float | None]:
    """Read the progress file; empty if missing or damaged, since nothing depends on it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    sound = isinstance(content, dict) and all(
        value is None or isinstance(value, int | float) for value in content.values()
    )
    return content if sound else {}
