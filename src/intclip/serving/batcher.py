"""The one queue before the models: whoever asks submits photos one by one, and they are computed in batches.

Photos are decoded in a small pool of threads and computed by two workers. The first never waits for a batch to fill:
it takes what is ready, and while it computes the next photos come together. So a photo alone is answered at once, and
under load batches grow by themselves. Once there is a full one the second worker begins it beside the first: no core
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

from intclip.data.images import MAX_PIXELS, ImageInput, describe, read_image
from intclip.data.loading import normalize_into, read_for_model, usable_cores
from intclip.errors import ImageError, IntclipError
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Predictor

if TYPE_CHECKING:
    from intclip.evidence.evidence import Evidence
    from intclip.evidence.words import WordEvidence

Result = TypeVar("Result")
Post = tuple[ImageInput | None, str | None]
"""A photo, the words beside it, or both; words only for a model that reads them."""

_Pixels = dict[int, npt.NDArray[np.float32]]
"""What a worker writes its batches into, (B, 3, S, S) by S: made anew for each, they would scatter through memory."""

log = logging.getLogger(__name__)

MAX_CHARACTERS = 5000
"""Longest text of a post: all of its words are encoded, up to two seconds for one of this length."""
_BEHIND = 8
"""Photos that came so much later are decoded before the next one of a list: long lists do not hold up single photos."""
_MEMORY = 0.8
"""Share of the past in the running mean of seconds a photo."""
_LONGEST_WAIT = 60.0
_WORKERS = 2
"""Batches at once: where one ends, the cores that are through with it go on with the next."""


class Busy(IntclipError):
    """The queue is full.

    Args:
        retry_after: Seconds after which there is probably room, at least 1.
    """

    def __init__(self, retry_after: float) -> None:
        super().__init__(f"too many photos are waiting; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(IntclipError):
    """The queue takes nothing more: the program is shutting down."""


class ModelFailure(RuntimeError):
    """Reading or computing one photo broke off in a way that nobody foresaw; no fault of who asked."""

    def __init__(self) -> None:
        super().__init__("the model failed on this one; the log tells more")


@dataclass(eq=False, slots=True)
class _Job:
    model: str
    image: ImageInput | None
    text: str | None
    source: str
    future: Future[Prediction]
    pixels: npt.NDArray[np.uint8] | None = None


class Batcher:
    """Models behind one bounded queue; made once and shared by all threads.

    Args:
        models: Name to model; the first is the default.
        capacity: Most photos inside at once: waiting, decoded, being computed.
        max_batch: Most photos the engine takes at once.
        decoders: Threads that decode; as many as there are usable cores by default.
        max_pixels: Larger photos are refused from their header.
        max_characters: Longer texts are refused.
        on_batch: Told the size of each batch and the seconds it took, those in which an earlier one was not yet through
            not counted; on a worker's thread.
        on_failure: Told of each `ModelFailure`, on the thread where it came up.

    Attributes:
        models: See above.
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
        self._seconds = 0.02  # a photo, until the first batches have been timed
        self._closing = False
        self._change = threading.Condition()
        self._pool = ThreadPoolExecutor(decoders or usable_cores(), thread_name_prefix="intclip-decode")
        self._computing = 0
        self._ended = 0.0  # when the last batch was through
        self._workers = [
            threading.Thread(target=self._work, name=f"intclip-batches-{number}", daemon=True)
            for number in range(_WORKERS)
        ]
        for worker in self._workers:
            worker.start()
        # Whoever is interrupted does not close; an engine that computes while its process is torn down aborts it.
        atexit.register(self.close)

    @property
    def inside(self) -> int:
        """Photos taken and not yet answered."""
        return self._inside

    def submit(
        self, image: ImageInput | None, text: str | None = None, *, model: str | None = None
    ) -> Future[Prediction]:
        """Take one post; `submit_all` tells what is raised, and what the future holds."""
        return self.submit_all([(image, text)], model=model)[0]

    def submit_all(self, posts: Sequence[Post], *, model: str | None = None) -> list[Future[Prediction]]:
        """Take some posts, all of them or none.

        Args:
            posts: At most `capacity`.
            model: Its name; the first one by default.

        Returns:
            A future a post. It holds the `Prediction`, or raises `ImageError` where the photo cannot be read, and
            `ModelFailure` where it breaks the model; others of its batch do not feel that. One that is cancelled before
            its batch was begun is not computed.

        Raises:
            Busy: There is no room for all of them.
            Closed: `close` was called.
            IntclipError: There is no such model, it reads no words, or a post is empty or its text too long.
        """
        name, predictor = self.find(model)
        for image, text in posts:
            _check_post(name, predictor, image, text, self._max_characters)
        jobs = [_Job(name, image, text, _source(image), Future()) for image, text in posts]
        with self._change:  # so that `close` ends the pool before or after, not between
            self._enter(len(jobs))
            for place, job in enumerate(jobs):
                self._arrivals += 1
                heappush(self._undecoded, (self._arrivals + _BEHIND * place, self._arrivals, job))
                self._pool.submit(self._decode_next)
        return [job.future for job in jobs]

    def explain(
        self, image: ImageInput, label: str, *, model: str | None = None, fine: bool = False
    ) -> "Future[Evidence]":
        """Evidence of a label in a photo, from the very pixels that `submit` predicts from.

        Args:
            image: The photo.
            label: Name or alias of a label.
            model: Its name; the default by default.
            fine: Evidence of kind "fine", ten passes, in place of "regions".

        Raises:
            TaxonomyError: There is no such label.
            Busy, Closed, IntclipError: As `submit_all`; and the model has no maps.
        """
        predictor = self.find(model)[1]
        predictor.taxonomy.index(label)
        return self.run(partial(_explain, predictor, image, label, self._max_pixels, fine=fine))

    def explain_words(self, text: str, label: str, *, model: str | None = None) -> "Future[WordEvidence]":
        """Which words of a text speak for a label.

        Args:
            text: The words of a post.
            label: Name or alias of a label.
            model: The model's name; the default by default.

        Raises:
            TaxonomyError: There is no such label.
            Busy, Closed, IntclipError: As `submit_all`; and the model does not read words alone.
        """
        name, predictor = self.find(model)
        predictor.taxonomy.index(label)
        if "text" not in predictor.alone:
            raise IntclipError(f"{name} does not read words alone; `intclip fit` makes a model that does")
        _check_post(name, predictor, None, text, self._max_characters)
        return self.run(partial(predictor.explain_words, text, label))

    def run(self, work: Callable[[], Result]) -> Future[Result]:
        """Other work on a photo, such as drawing one, in the decoding threads; it takes the room of one photo.

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
        """A model and its name; the first one by default.

        Raises:
            IntclipError: There is no such model.
        """
        name = self.default if model is None else model
        if name not in self.models:
            raise IntclipError(f"no model {name!r} is served; there are: {', '.join(self.models)}")
        return name, self.models[name]

    def close(self) -> None:
        """Take nothing more, finish everything that was taken, then end the threads."""
        with self._change:
            self._closing = True
        self._pool.shutdown(wait=True)
        with self._change:
            self._change.notify_all()
        for worker in self._workers:
            worker.join()
        atexit.unregister(self.close)

    def _enter(self, count: int) -> None:
        """Take room; the caller holds the lock."""
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
        """Photo to the model's size, (S, S, 3) uint8: little to keep while it waits for its batch."""
        with self._change:
            job = heappop(self._undecoded)[2]
        if job.future.cancelled():
            self._leave(1)
            return
        try:
            if job.image is not None:
                job.pixels = _read(job.image, self.models[job.model], self._max_pixels)
                job.image = None
        except BaseException as error:  # of any kind: the room must be left, and somebody waits
            self._finish([job], [self._told(error)])
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
        """Beside a batch that is computed only a full one is begun; what is less grows until that one is done.

        The caller holds the lock.
        """
        return len(self._queue) >= (self._max_batch if self._computing else 1)

    def _wake(self) -> None:
        """Wake a worker where one may begin; woken for every photo, both would take turns for nothing.

        The caller holds the lock.
        """
        if self._may_begin():
            self._change.notify()

    def _take(self) -> list[_Job]:
        """The oldest job and those of the same model behind it, up to a batch; others keep their order."""
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
        except BaseException as error:  # must not end the worker (a panic in Rust is no Exception), nor fail the others
            if len(jobs) == 1:
                return [self._told(error)]
            half = len(jobs) // 2
            return self._compute(jobs[:half], pixels) + self._compute(jobs[half:], pixels)
        with self._change:
            end = time.perf_counter()
            seconds, self._ended = end - max(start, self._ended), end
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds / len(jobs)
        self._on_batch(len(jobs), seconds)
        return found

    def _told(self, error: BaseException) -> Exception:
        """What the future raises: without frames, which would keep the photo for as long as somebody holds it."""
        if isinstance(error, IntclipError):
            return type(error)(str(error)) if type(error) in (ImageError, IntclipError) else error
        # Its own text may quote a post's words.
        places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)[-3:]]
        log.error("a photo broke the model: %s at %s", type(error).__name__, " < ".join(reversed(places)))
        self._on_failure()
        return ModelFailure()

    def _finish(self, jobs: list[_Job], results: Sequence[Prediction | Exception]) -> None:
        self._leave(len(jobs))  # first: whoever is answered may submit again at once
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
        raise IntclipError(f"{name} reads photos alone; give no text, or serve a model of `intclip fit`")
    if text is not None and len(text) > most:
        raise IntclipError(f"a text has {len(text)} characters; at most {most} are taken, shorten it")
    if not words and image is None:
        raise IntclipError("a post has neither a photo nor words; give one of them")
    if not words and "image" not in predictor.channels:
        raise IntclipError(f"{name} reads words alone; give a text")
    if image is None and "text" not in predictor.alone:
        raise IntclipError(f"{name} reads words only beside a photo; give the photo too")


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
    photo = read_for_model(image, preprocess.size, max_pixels=max_pixels)
    return preprocess.resize(photo)


def _explain(predictor: Predictor, image: ImageInput, label: str, max_pixels: int, *, fine: bool) -> "Evidence":
    # A photo of the model's own size goes through its preprocessing unchanged; only the box is the whole photo's.
    evidence = predictor.explain(_read(image, predictor, max_pixels), label, kind="fine" if fine else "regions")
    size = read_image(image, max_pixels=max_pixels).size
    return replace(evidence, box=predictor.card.preprocessing.source_box(size), source=_source(image))


def _source(image: ImageInput | None) -> str:
    return "text" if image is None else describe(image)
