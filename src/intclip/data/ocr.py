"""Text in pictures by RapidOCR, whose models are part of its package: no downloads."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from intclip.data.images import ImageInput, read_image
from intclip.data.sample import Dataset, Sample
from intclip.errors import ImageError
from intclip.extras import require

SIDE = 2000
"""Maximum longer side in pixels; larger photos are reduced before reading."""
_lock = threading.Lock()


def read_words(photo: ImageInput, *, max_pixels: int | None = None) -> str:
    """Return the text in a picture, line by line from the top, joined by spaces; empty if there is none.

    Lines with a confidence below one half are dropped.

    Raises:
        ImageError: The photo cannot be read.
        MissingExtraError: RapidOCR is not installed.
    """
    engine = _engine()
    limits = {} if max_pixels is None else {"max_pixels": max_pixels}
    image = read_image(photo, min_side=SIDE, **limits)
    image.thumbnail((SIDE, SIDE))
    pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # its models expect BGR
    with _lock:
        found = engine(pixels)
    return " ".join(line.strip() for line in found.txts or () if line.strip())


def add_words(photos: Iterable[ImageInput | None], texts: Iterable[str | None]) -> Iterator[str | None]:
    """Yield each post's text followed by the text in its picture, lazily.

    An unreadable photo adds nothing; its error is reported when it is used.
    """
    for photo, text in zip(photos, texts, strict=True):
        yield text if photo is None else _joined(text, photo)


def add_words_to(
    dataset: Dataset, splits: Sequence[str], progress: Callable[[str, int, int], None] | None = None
) -> Dataset:
    """Append the text in its picture to the text of each post of a dataset.

    Args:
        dataset: Photos or posts.
        splits: Splits to change.
        progress: Called with the stage, completed and total units.
    """
    total, done = sum(len(dataset.splits.get(split, ())) for split in splits), 0
    found: dict[str, Any] = dict(dataset.splits)
    for split in splits:
        samples: list[Sample] = []
        for sample in dataset.splits.get(split, ()):
            samples.append(sample if sample.image is None else replace(sample, text=_joined(sample.text, sample.image)))
            done += 1
            if progress is not None:
                progress("reading text in pictures", done, total)
        if split in found:
            found[split] = samples
    return replace(dataset, splits=found)


def _joined(text: str | None, photo: ImageInput) -> str | None:
    try:
        words = read_words(photo)
    except ImageError:
        return text
    return " ".join(part for part in (text, words) if part and part.strip()) or None


@cache
def _engine() -> Any:
    require("onnxruntime", "ocr")
    return require("rapidocr", "ocr").RapidOCR(params={"Global.log_level": "error"})
