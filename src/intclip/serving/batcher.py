"""The queue in front of the models: photos are submitted one by one and computed in batches.

Photos are decoded in a small thread pool and computed by two workers. The first never waits for a batch to fill:
it takes what is ready, and while it computes, the next photos accumulate. So a single photo is answered at once, and
batches grow under load. A full batch is started by the second worker while the first is still computing, so no core
waits for the last photos of a batch.
"""

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from traceback import extract_tb
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from intclip.data.images import MAX_PIXELS, ImageInput, describe, whole_size
from intclip.data.loading import normalize_into, read_for_model, usable_cores
from intclip.errors import ImageError, IntclipError
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Predictor

if TYPE_CHECKING:
    from intclip.evidence.evidence import Evidence
    from intclip.evidence.words import WordEvidence

Result = TypeVar("Result")
Post = tuple[ImageInput | None, str | None]
"""A photo, a text, or both; text only for models that use it."""

_Pixels = dict[int, npt.NDArray[np.float32]]
"""A worker's batch buffers, (B, 3, S, S) by S; new ones for each batch would fragment memory."""

log = logging.getLogger(__name__)

MAX_CHARACTERS = 5000
"""Maximum characters per text: encoding one of this length takes up to two seconds."""
_BEHIND = 8
"""Photos that arrive this much later still overtake the rest of a list, so long lists do not delay single photos."""
_MEMORY = 0.8
"""Weight of the past in the running mean of seconds per photo."""
_LONGEST_WAIT = 60.0
_WORKERS = 2
"""Concurrent batches: cores that finish one early continue with the next."""


class Busy(IntclipError):
    """The queue is full.

    Args:
        retry_after: Seconds until there is probably room, at least 1.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many photos are waiting; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(IntclipError):
    """The queue is closed: the program is shutting down."""


class ModelFailure(RuntimeError):
    """Reading or computing one photo failed unexpectedly; not the client's fault."""

    def __init__(self) -> None:
        super().__init__("the model failed on this one; see the log")


@dataclass(eq=False, slots=True)
class _Job:
    model: str
    image: ImageInput | None
    text: str | None
    source: str
    future: Future[Prediction]
    pixels: npt.NDArray[np.uint8] | None = None


class Batcher:
    """Models behind one bounded queue; thread-safe.

    Args:
        models: Name to model; the first is the default.
        capacity: Maximum photos in progress: waiting, decoded, being computed.
        max_batch: Maximum photos per batch.
        decoders: Decoding threads; default: the number of usable cores.
        max_pixels: Larger photos are rejected.
        max_characters: Longer texts are rejected.
        on_batch: Called on a worker's thread with the size of each batch and its seconds, not counting time that
            overlaps an earlier batch.
        on_failure: Called with each `ModelFailure`, on the thread where it occurred.

    Attributes:
        models: Name to model.
        default: Name of the first model.
    """

    def __init__(
        self,
        models: Mapping[str, Predictor],
        *,
        capacity: int = 256,
        max_batch: int = 32,
        decoders: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_characters: int = MAX_CHARACTERS,
        on_batch: Callable[[int, float], None] = lambda photos, seconds: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        if not models or capacity < 1 or max_batch < 1:
            raise ValueError("give at least one model; capacity and max_batch are at least 1")
        self.models = dict(models)
        self.default = next(iter(self.models))
        self._capacity, self._max_batch = capacity, max_batch
        self._max_pixels, self._max_characters = max_pixels, max_characters
        self._on_batch, self._on_failure = on_batch, on_failure
        self._undecoded: list[tuple[int, int, _Job]] = []
        self._arrivals = 0
        self._queue: deque[_Job] = deque()
        self._inside = 0
        self._seconds = 0.02  # per photo, until the first batches have been timed
        self._closing = False
        self._change = threading.Condition()
        self._pool = ThreadPoolExecutor(decoders or usable_cores(), thread_name_prefix="intclip-decode")
        self._computing = 0
        self._ended = 0.0  # end of the last batch
        self._workers = [
            threading.Thread(target=self._work, name=f"intclip-batches-{number}", daemon=True)
            for number in range(_WORKERS)
        ]
        for worker in self._workers:
            worker.start()
        # An interrupted program does not call close, and an engine that is still computing at exit aborts the process.
        atexit.register(self.close)

    @property
    def inside(self) -> int:
        """Photos accepted and not yet answered."""
        return self._inside

    def submit(
        self, image: ImageInput | None, text: str | None = None, *, model: str | None = None
    ) -> Future[Prediction]:
        """Submit one post; see `submit_all`."""
        return self.submit_all([(image, text)], model=model)[0]

    def submit_all(self, posts: Sequence[Post], *, model: str | None = None) -> list[Future[Prediction]]:
        """Submit posts, all of them or none.

        Args:
            posts: At most `capacity`.
            model: Model name; default: the first.

        Returns: A future per post with its `Prediction`. It raises `ImageError` if the photo cannot be read, and
            `ModelFailure` if the model fails on it; other photos of the batch are not affected. A future cancelled
            before its batch starts is not computed.

        Raises:
            Busy: There is no room for all of them.
            Closed: `close` was called.
            IntclipError: The model is unknown or does not use text, or a post is empty or its text too long.
        """
        name, predictor = self.find(model)
        for image, text in posts:
            _check_post(name, predictor, image, text, self._max_characters)
        jobs = [_Job(name, image, text, _source(image), Future()) for image, text in posts]
        with self._change:  # so that `close` cannot end the pool in between
            self._enter(len(jobs))
            for place, job in enumerate(jobs):
                self._arrivals += 1
                heappush(self._undecoded, (self._arrivals + _BEHIND * place, self._arrivals, job))
                self._pool.submit(self._decode_next)
        return [job.future for job in jobs]

    def explain(
        self, image: ImageInput, label: str, *, model: str | None = None, kind: str = "regions"
    ) -> "Future[Evidence]":
        """Compute the evidence for a label in a photo, from the same pixels as `submit`.

        Args:
            image: The photo.
            label: Name or alias of a label.
            model: Model name; default: the first.
            kind: As for `Predictor.explain`.

        Raises:
            TaxonomyError: The label is unknown.
            Busy, Closed, IntclipError: As `submit_all`, or the model has no maps.
        """
        predictor = self.find(model)[1]
        predictor.taxonomy.index(label)
        return self.run(partial(_explain, predictor, image, label, self._max_pixels, kind))

    def explain_words(self, text: str, label: str, *, model: str | None = None) -> "Future[WordEvidence]":
        """Compute the evidence for a label in a text.

        Args:
            text: The post's text.
            label: Name or alias of a label.
            model: Model name; default: the first.

        Raises:
            TaxonomyError: The label is unknown.
            Busy, Closed, IntclipError: As `submit_all`, or the model cannot use text alone.
        """
        name, predictor = self.find(model)
        predictor.taxonomy.index(label)
        if "text" not in predictor.alone:
            raise IntclipError(f"{name} cannot use text alone; train a model that can with `intclip fit`")
        _check_post(name, predictor, None, text, self._max_characters)
        return self.run(partial(predictor.explain_words, text, label))

    def run(self, work: Callable[[], Result]) -> Future[Result]:
        """Run other work on a photo, such as drawing, in the decoding threads; counts as one photo.

        Raises:
            Busy: The queue is full.
            Closed: `close` was called.
        """
        with self._change:
            self._enter(1)
            future = self._pool.submit(work)
        future.add_done_callback(lambda _: self._leave(1))
        return future

    def find(self, model: str | None = None) -> tuple[str, Predictor]:
        """Return a model and its name; default: the first.

        Raises:
            IntclipError: The model is unknown.
        """
        name = self.default if model is None else model
        if name not in self.models:
            raise IntclipError(f"unknown model {name!r}; served models: {', '.join(self.models)}")
        return name, self.models[name]

    def close(self) -> None:
        """Close the queue, finish accepted photos, then end the threads."""
        with self._change:
            self._closing = True
        self._pool.shutdown(wait=True)
        with self._change:
            self._change.notify_all()
        for worker in self._workers:
            worker.join()
        atexit.unregister(self.close)

    def _enter(self, count: int) -> None:
        """Reserve room; the caller holds the lock."""
        if self._closing:
            raise Closed("the service is shutting down; try again later")
        if self._inside + count > self._capacity:
            raise Busy(min(max(1.0, self._inside * self._seconds), _LONGEST_WAIT))
        self._inside += count

    def _leave(self, count: int) -> None:
        with self._change:
            self._inside -= count
            if self._closing:
                self._change.notify_all()

    def _decode_next(self) -> None:
        """Resize a photo to the model's input, (S, S, 3) uint8, to save memory while it waits."""
        with self._change:
            job = heappop(self._undecoded)[2]
        if job.future.cancelled():
            self._leave(1)
            return
        try:
            if job.image is not None:
                job.pixels = _read(job.image, self.models[job.model], self._max_pixels)
                job.image = None
        except BaseException as error:  # of any kind: the room must be released, and a client is waiting
            self._finish([job], [self._without_frames(error)])
            return
        with self._change:
            self._queue.append(job)
            self._wake()

    def _work(self) -> None:
        pixels: _Pixels = {}
        while True:
            with self._change:
                self._change.wait_for(lambda: self._may_begin() or (self._closing and self._inside == 0))
                if not self._queue:
                    return
                batch = self._take()
                self._computing += 1
                self._wake()
            wanted = [job for job in batch if not job.future.cancelled()]
            results = self._compute(wanted, pixels) if wanted else []
            with self._change:
                self._computing -= 1
                self._wake()
            self._finish(wanted, results)
            if gone := len(batch) - len(wanted):
                self._leave(gone)

    def _may_begin(self) -> bool:
        """Return whether a worker may start: next to a running batch, only a full one may.

        The caller holds the lock.
        """
        return len(self._queue) >= (self._max_batch if self._computing else 1)

    def _wake(self) -> None:
        """Wake a worker if one may start; waking for every photo would be wasteful.

        The caller holds the lock.
        """
        if self._may_begin():
            self._change.notify()

    def _take(self) -> list[_Job]:
        """Take the oldest job and others of the same model, up to a batch; the rest keep their order."""
        model = self._queue[0].model
        batch: list[_Job] = []
        others: list[_Job] = []
        while self._queue and len(batch) < self._max_batch:
            job = self._queue.popleft()
            (batch if job.model == model else others).append(job)
        self._queue.extendleft(reversed(others))
        return batch

    def _compute(self, jobs: list[_Job], pixels: _Pixels) -> list[Prediction | Exception]:
        start = time.perf_counter()
        try:
            found = _predict(self.models[jobs[0].model], jobs, pixels, self._max_batch)
        except BaseException as error:  # must not end the worker (a Rust panic is not an Exception) or fail the others
            if len(jobs) == 1:
                return [self._without_frames(error)]
            half = len(jobs) // 2
            return self._compute(jobs[:half], pixels) + self._compute(jobs[half:], pixels)
        with self._change:
            end = time.perf_counter()
            seconds, self._ended = end - max(start, self._ended), end
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds / len(jobs)
        self._on_batch(len(jobs), seconds)
        return found

    def _without_frames(self, error: BaseException) -> Exception:
        """Return the error for the future without frames, which would keep the photo alive."""
        if isinstance(error, IntclipError):
            return type(error)(str(error)) if type(error) in (ImageError, IntclipError) else error
        # Its message may contain a post's text.
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[-3:]]
        log.error("the model failed on a photo: %s at %s", type(error).__name__, " < ".join(reversed(places)))
        self._on_failure()
        return ModelFailure()

    def _finish(self, jobs: list[_Job], results: Sequence[Prediction | Exception]) -> None:
        self._leave(len(jobs))  # first: an answered client may submit again at once
        for job, result in zip(jobs, results, strict=True):
            if not job.future.set_running_or_notify_cancel():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)


def _check_post(name: str, predictor: Predictor, image: ImageInput | None, text: str | None, most: int) -> None:
    words = text is not None and text.strip() != ""
    if words and "text" not in predictor.channels:
        raise IntclipError(f"{name} uses only photos; send no text, or serve a model of `intclip fit`")
    if text is not None and len(text) > most:
        raise IntclipError(f"a text has {len(text)} characters; shorten it to at most {most}")
    if not words and image is None:
        raise IntclipError("a post has neither photo nor text; send at least one")
    if not words and "image" not in predictor.channels:
        raise IntclipError(f"{name} uses only text; send a text")
    if image is None and "text" not in predictor.alone:
        raise IntclipError(f"{name} uses text only together with a photo; send the photo too")


def _predict(predictor: Predictor, jobs: list[_Job], kept: _Pixels, most: int) -> list[Prediction | Exception]:
    preprocess = predictor.card.preprocessing
    size = preprocess.size
    if size not in kept:
        kept[size] = np.empty((most, 3, size, size), dtype=np.float32)
    rows: list[int | None] = []
    photos = 0
    for job in jobs:
        if job.pixels is None or "image" not in predictor.channels:
            rows.append(None)
            continue
        normalize_into(kept[size][photos], job.pixels, preprocess)
        rows.append(photos)
        photos += 1
    texts, sources = [job.text for job in jobs], [job.source for job in jobs]
    return [*predictor.read_batch(kept[size][:photos], rows, texts, sources)]


def _read(image: ImageInput, predictor: Predictor, max_pixels: int) -> npt.NDArray[np.uint8]:
    preprocess = predictor.card.preprocessing
    return preprocess.resize(read_for_model(image, preprocess.size, max_pixels=max_pixels))


def _explain(predictor: Predictor, image: ImageInput, label: str, max_pixels: int, kind: str) -> "Evidence":
    preprocess = predictor.card.preprocessing
    photo = read_for_model(image, preprocess.size, max_pixels=max_pixels)
    # A photo already at the input size passes preprocessing unchanged; only the box refers to the whole photo.
    evidence = predictor.explain(preprocess.resize(photo), label, kind=kind)
    return replace(evidence, box=preprocess.source_box(whole_size(photo)), source=_source(image))


def _source(image: ImageInput | None) -> str:
    return "text" if image is None else describe(image)
