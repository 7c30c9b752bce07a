"""Words in a picture, read by RapidOCR, whose models come inside its package: nothing is fetched."""

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
"""Longer side, in pixels, to which larger photos are reduced before they are read."""
_lock = threading.Lock()


def read_words(photo: ImageInput, *, max_pixels: int | None = None) -> str:
    """The words in a picture, line by line from the top, joined by blanks; empty where there are none.

    Lines that the recognition model gives less than half of its confidence are left out.

    Raises:
        ImageError: The photo cannot be read.
        MissingExtraError: RapidOCR is not installed.
    """
    engine = _engine()
    limits = {} if max_pixels is None else {"max_pixels": max_pixels}
    image = read_image(photo, min_side=SIDE, **limits)
    image.thumbnail((SIDE, SIDE))
    pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])  # its models take blue, green, red
    with _lock:
        found = engine(pixels)
    return " ".join(line.strip() for line in found.txts or () if line.strip())


def add_words(photos: Iterable[ImageInput | None], texts: Iterable[str | None]) -> Iterator[str | None]:
    """The words of posts, each followed by the words in its picture, one by one as they are taken.

    A photo that cannot be read adds nothing: whoever reads the photo says what is wrong with it.
    """
    for photo, text in zip(photos, texts, strict=True):
        yield text if photo is None else _joined(text, photo)


def add_words_to(
    dataset: Dataset, splits: Sequence[str], progress: Callable[[str, int, int], None] | None = None
) -> Dataset:
    """The dataset with the words in its pictures behind the text of each post.

    Args:
        dataset: Photos, or posts.
        splits: Which of its splits; the others stay as they are.
        progress: Called with the stage, how much of it is done and how much there is.
    """
    total, done = sum(len(dataset.splits.get(split, ())) for split in splits), 0
    found: dict[str, Any] = dict(dataset.splits)
    for split in splits:
        samples: list[Sample] = []
        for sample in dataset.splits.get(split, ()):
            samples.append(sample if sample.image is None else replace(sample, text=_joined(sample.text, sample.image)))
            done += 1
            if progress is not None:
                progress("reading the words in pictures", done, total)
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
