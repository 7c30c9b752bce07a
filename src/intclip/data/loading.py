"""From photos to normalised pixels: the pipeline of training, prediction, caching and batch jobs."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, read_image
from intclip.data.sample import Sample
from intclip.data.transforms import PhotoChange
from intclip.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor


DRAFT_FACTOR = 2
"""Photos are decoded at no less than this multiple of the model's input size: at 2, the JPEG decoder's own downscaling
changes the model's input by about 0.7 of 255 on average for 3,000-pixel photos and costs a third of the time; at 1 it
would be about 3 of 255 (`benchmarks/loader.py`)."""


class ArrayBatch(NamedTuple):
    """A batch of consecutive photos, readable or not.

    Attributes:
        indices: (B,) int64, the position of each row of `pixels` among all photos.
        pixels: (B, 3, S, S) float32, normalised. B is 0 if no photo of the batch could be read.
        errors: Position and error of every unreadable photo.
    """

    indices: npt.NDArray[np.int64]
    pixels: npt.NDArray[np.float32]
    errors: list[tuple[int, ImageError]]


class PixelBatch(NamedTuple):
    """`ArrayBatch` with its pixels as a tensor sharing memory."""

    indices: npt.NDArray[np.int64]
    pixels: "Tensor"
    errors: list[tuple[int, ImageError]]


def array_batches(
    sources: Iterable[Sample | ImageInput | None],
    preprocess: Preprocess,
    batch_size: int,
    *,
    indices: Sequence[int] | npt.NDArray[np.int64] | None = None,
    augment: PhotoChange | None = None,
    workers: int | None = None,
    prefetch: int = 2,
) -> Iterator[ArrayBatch]:
    """Read, resize and normalise photos in threads, in order, some batches ahead.

    Every photo appears in exactly one batch, either in `indices` or in `errors`; a batch has `batch_size`
    photos including errors, the last one fewer. Memory is limited to `prefetch` + 1 batches. Threads suffice because
    Pillow releases the interpreter lock while decoding and resizing.

    Args:
        sources: Samples, or photos as for `read_image`; any iterable, read lazily. None is a
            missing photo, reported as an error.
        preprocess: Preprocessing with size S.
        batch_size: Photos per batch.
        indices: Positions to read, in this order, which requires `sources` to be a sequence; default: all.
        augment: Turns a photo into a training view, or corrupts it, before preprocessing.
        workers: Threads; default: the number of usable cores.
        prefetch: Number of batches prepared ahead.
    """
    if batch_size < 1 or prefetch < 0 or (workers is not None and workers < 1):
        raise ValueError("batch_size and workers must be at least 1, prefetch at least 0")
    if indices is None:
        numbered: Iterator[tuple[int, Sample | ImageInput | None]] = enumerate(sources)
    elif isinstance(sources, Sequence):
        numbered = ((int(index), sources[int(index)]) for index in indices)
    else:
        raise TypeError("indices require sources to be a sequence")
    load = partial(_load, preprocess=preprocess, augment=augment)
    return _generate(numbered, load, preprocess.size, batch_size, workers or usable_cores(), prefetch)


def pixel_batches(
    sources: Iterable[Sample | ImageInput],
    preprocess: Preprocess,
    batch_size: int,
    *,
    indices: Sequence[int] | npt.NDArray[np.int64] | None = None,
    augment: PhotoChange | None = None,
    workers: int | None = None,
    prefetch: int = 2,
) -> Iterator[PixelBatch]:
    """`array_batches` as tensors. Only this function needs torch; prediction from cached graphs does not."""
    import torch

    batches = array_batches(
        sources, preprocess, batch_size, indices=indices, augment=augment, workers=workers, prefetch=prefetch
    )
    return (PixelBatch(batch.indices, torch.from_numpy(batch.pixels), batch.errors) for batch in batches)


def read_for_model(source: ImageInput, side: int, **limits: int) -> Image.Image:
    """Call `read_image` for a photo that will be resized to a model's `side`; `limits` may set `max_pixels`."""
    return read_image(source, min_side=DRAFT_FACTOR * side, **limits)


def usable_cores() -> int:
    """Return the number of cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Pending(NamedTuple):
    indices: list[int]
    pixels: npt.NDArray[np.float32]
    rows: list[Future[None]]


def _generate(
    numbered: Iterator[tuple[int, Sample | ImageInput | None]],
    load: partial[None],
    size: int,
    batch_size: int,
    workers: int,
    prefetch: int,
) -> Iterator[ArrayBatch]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="intclip-pixels")
    pending: deque[_Pending] = deque()
    try:
        while chunk := list(islice(numbered, batch_size)):
            pixels = np.empty((len(chunk), 3, size, size), dtype=np.float32)
            rows = [pool.submit(load, source, index, row) for (index, source), row in zip(chunk, pixels, strict=True)]
            pending.append(_Pending([index for index, _ in chunk], pixels, rows))
            if len(pending) > prefetch:
                yield _collect(pending.popleft())
        while pending:
            yield _collect(pending.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collect(batch: _Pending) -> ArrayBatch:
    errors: list[tuple[int, ImageError]] = []
    good: list[int] = []
    for row, (index, future) in enumerate(zip(batch.indices, batch.rows, strict=True)):
        try:
            future.result()
            good.append(row)
        except ImageError as error:
            errors.append((index, _without_frames(error)))
    pixels = batch.pixels[good] if errors else batch.pixels
    return ArrayBatch(np.array(batch.indices, dtype=np.int64)[good], pixels, errors)


def _without_frames(error: ImageError) -> ImageError:
    """Remove the tracebacks of an error and its causes.

    They keep frames, and so the whole batch's pixels, alive until garbage collection:
    over thousands of photos memory would grow by hundreds of megabytes.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _load(
    source: Sample | ImageInput | None,
    index: int,
    row: npt.NDArray[np.float32],
    *,
    preprocess: Preprocess,
    augment: PhotoChange | None,
) -> None:
    """Write one photo's normalised pixels into its `row` (3, S, S) of the batch."""
    if source is None:
        raise ImageError("no photo, and the model cannot use text alone")
    if isinstance(source, Sample):
        if source.image is None:
            raise ImageError(f"sample {source.id} has no photo, only text or labels")
        source = source.image
    image = read_for_model(source, preprocess.size)
    if augment is not None:
        image = augment(image, index=index)
    normalize_into(row, preprocess.resize(image), preprocess)


def normalize_into(row: npt.NDArray[np.float32], photo: npt.NDArray[np.uint8], preprocess: Preprocess) -> None:
    """Normalise one photo (S, S, 3) into `row` (3, S, S), bit-identical to `Preprocess.normalize`.

    A single photo fits in the core's cache, which makes this over ten times as fast as normalising a whole batch
    (`benchmarks/loader.py`).
    """
    np.copyto(row, photo.transpose(2, 0, 1))
    row /= np.float32(255)
    row -= np.array(preprocess.mean, dtype=np.float32)[:, None, None]
    row /= np.array(preprocess.std, dtype=np.float32)[:, None, None]
