"""Compute one shard of a batch job, for both runners."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from intclip.batch.job import Job
from intclip.batch.references import Reference
from intclip.batch.shards import PhotoRow, ShardInfo, read_info, write_shard
from intclip.data.duplicates import perceptual_hash
from intclip.data.images import read_bytes, read_image
from intclip.data.loading import usable_cores
from intclip.data.sample import Lenient
from intclip.errors import ImageError
from intclip.inference.card import EMBEDDING
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Predictor

HASH_SIDE = 64
"""Minimum decoded side in pixels for perceptual hashes."""


class ShardMapper:
    """Scores shards by number; the model is loaded on first use.

    It may be called for an existing shard, or by two workers for the same one: both write the
    same rows, and the last rename wins.

    Args:
        job: The job.
        workers: Threads that read photos; default: the number of usable cores.
        threads: Compute threads, instead of the job's.
    """

    def __init__(self, job: Job, *, workers: int | None = None, threads: int | None = None) -> None:
        self._job, self._workers, self._threads = job, workers or usable_cores(), threads
        self._predictor: Predictor | None = None

    def __call__(self, number: int, on_progress: Callable[[int], None] | None = None) -> ShardInfo:
        """Write a shard and return its footer.

        Args:
            number: Number of the shard.
            on_progress: Called with the number of completed photos of this shard.

        Raises:
            StorageError: The shard cannot be written, or the inputs cannot be read.
            IntclipError: The model cannot be loaded.
        """
        job, part = self._job, self._job.manifest.shards[number]
        options = job.manifest.options
        inputs = job.inputs(number)
        hashed = self._hash(inputs) if options.dedupe != "off" else None
        rows: list[PhotoRow] = []
        for row in self._score(inputs) if hashed is None else self._score_unique(inputs, hashed):
            rows.append(row)
            if on_progress is not None and len(rows) % options.batch_size == 0:
                on_progress(len(rows))
        errors = sum(row.error is not None for row in rows)
        info = ShardInfo(job.manifest.key, part.start, len(rows), errors, time.time())
        write_shard(job.shard_path(number), rows, labels=job.manifest.labels, dedupe=options.dedupe != "off", info=info)
        return info

    def _score(self, inputs: Sequence[Reference]) -> Iterator[PhotoRow]:
        options = self._job.manifest.options
        if self._predictor is None:
            model = options.model
            if self._threads is not None:
                model = model.model_copy(update={"threads": self._threads})
            self._predictor = model.load()
        predictor = self._predictor
        levels = np.asarray(self._job.manifest.thresholds, dtype=np.float32)
        predictor.check_photos()
        photos = predictor.score(
            ((Lenient(image) if options.lenient else image, None) for image in map(Reference.image, inputs)),
            batch_size=options.batch_size,
            workers=self._workers,
            embedding=options.embedding,
        )
        for reference, photo in zip(inputs, photos, strict=True):
            if photo.error is not None:
                yield PhotoRow(reference.path, error=str(photo.error))
                continue
            probabilities = np.array(photo.outputs["probabilities"], dtype=np.float32)
            labels = Prediction(probabilities, levels, predictor.taxonomy, reference.path).labels
            embedding = np.array(photo.outputs[EMBEDDING]) if options.embedding else None
            yield PhotoRow(reference.path, probabilities, labels, embedding)

    def _score_unique(self, inputs: Sequence[Reference], hashed: Sequence[PhotoRow]) -> Iterator[PhotoRow]:
        """Compute a shard's rows with photos of equal bytes computed once."""
        firsts: dict[bytes, int] = {}
        for position, photo in enumerate(hashed):
            if photo.content is not None:
                firsts.setdefault(photo.content, position)
        scored = self._score([inputs[position] for position in firsts.values()])
        found: dict[bytes, PhotoRow] = {}
        for position, photo in enumerate(hashed):
            if photo.content is None:
                yield photo
                continue
            if firsts[photo.content] == position:
                found[photo.content] = next(scored)
            first = found[photo.content]
            error = first.error and first.error.replace(first.path, photo.path)
            yield replace(
                first, path=photo.path, error=error, content=photo.content, perceptual_hash=photo.perceptual_hash
            )

    def _hash(self, inputs: Sequence[Reference]) -> list[PhotoRow]:
        """Return rows with hashes, or with errors for unreadable photos."""
        perceptual = self._job.manifest.options.dedupe == "perceptual"
        with ThreadPoolExecutor(self._workers) as pool:
            return list(pool.map(lambda reference: _hash(reference, perceptual), inputs))


def done_shard(job: Job, number: int) -> ShardInfo | None:
    """Return the footer of an existing shard of this job; None otherwise."""
    part = job.manifest.shards[number]
    info = read_info(job.shard_path(number))
    if info is None or (info.key, info.start, info.rows) != (job.manifest.key, part.start, part.stop - part.start):
        return None
    return info


def _hash(reference: Reference, perceptual: bool) -> PhotoRow:
    try:
        data = read_bytes(reference.image())
    except ImageError as error:
        return PhotoRow(reference.path, error=str(error))
    row = PhotoRow(reference.path, content=hashlib.sha256(data).digest())
    if perceptual:
        try:
            halves = perceptual_hash(read_image(data, min_side=HASH_SIDE))
            row.perceptual_hash = b"".join(half.to_bytes(8, "big") for half in halves)
        except ImageError:
            pass  # scoring will report the error
    return row
