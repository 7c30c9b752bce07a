"""Score photos in order: decoding in threads during computation, with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, find_images, is_photo
from intclip.data.loading import array_batches
from intclip.data.naming import describe
from intclip.data.transforms import PhotoChange
from intclip.errors import ImageError, IntclipError
from intclip.inference.card import Channel
from intclip.inference.engines import Arrays

Texts = str | Iterable[str | None]
"""Texts of posts; None or blank if a post has none."""
Images = ImageInput | Iterable[ImageInput | None]
"""Photos; None if a post has none."""
Post = tuple[ImageInput | None, str | None]
"""A photo, a text, or both."""
Pixels = npt.NDArray[np.float32]
Compute = Callable[[Pixels | None, Sequence[str] | None], Arrays]
"""Computes a batch's outputs from pixels, texts, or both; all its posts have the same channels."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Result of the pipeline for one post.

    Attributes:
        source: The photo's path, or its type and position in the list.
        outputs: The post's outputs by name, without the batch dimension; empty on error.
        error: Why it could not be read.
        channels: Channels used: "image", "text" or both.
    """

    source: str
    outputs: dict[str, npt.NDArray[Any]]
    error: ImageError | None = None
    channels: tuple[Channel, ...] = ("image",)


class _Waiting(NamedTuple):
    """A post whose photo is being decoded: its name, whether it has a photo, and its text."""

    source: str
    photo: bool
    words: str | None


def score_posts(
    posts: Iterable[Post],
    preprocess: Preprocess,
    compute: Compute,
    *,
    batch_size: int,
    channels: Sequence[Channel] = ("image",),
    alone: Sequence[Channel] = ("image",),
    workers: int | None = None,
    augment: PhotoChange | None = None,
) -> Iterator[Scored]:
    """Score posts in order; unreadable ones give a result with an error.

    Posts are read lazily, two batches ahead of the engine, so memory does not
    grow with their number.

    Args:
        posts: Photos as for `read_image`, texts, or both; any iterable.
        preprocess: From photo to pixels.
        compute: From pixels and texts to outputs.
        batch_size: Posts per batch.
        channels: Channels that the model uses; others are ignored.
        alone: Channels that suffice without the other.
        workers: Decoding threads; default: the number of usable cores.
        augment: Applied to every photo before preprocessing.
    """
    ahead: deque[_Waiting] = deque()

    def photos() -> Iterator[ImageInput | None]:
        for position, (image, text) in enumerate(posts):
            seen = image if "image" in channels else None
            words = text if text and text.strip() and "text" in channels else None
            ahead.append(_Waiting(describe(image, position), seen is not None, words))
            yield seen

    for batch in array_batches(photos(), preprocess, batch_size, augment=augment, workers=workers):
        place = {int(index): row for row, index in enumerate(batch.indices)}
        errors = dict(batch.errors)
        order = sorted([*place, *errors])
        waiting = {index: ahead.popleft() for index in order}
        by_words = [index for index in errors if not waiting[index].photo and waiting[index].words and "text" in alone]
        computed = sorted([*place, *by_words])
        rows = [place.get(index) for index in computed]
        found = dict(
            zip(computed, score_batch(batch.pixels, rows, [waiting[i].words for i in computed], compute), strict=True)
        )
        for index in order:
            post = waiting[index]
            if index in found:
                read = [name for name, there in (("image", index in place), ("text", post.words)) if there]
                yield Scored(post.source, found[index], channels=cast("tuple[Channel, ...]", tuple(read)))
            elif post.photo:
                yield Scored(post.source, {}, _renamed(errors[index], post.source))
            else:
                yield Scored(post.source, {}, ImageError(f"{post.source}: {_lacking(alone)}"))


def score_batch(
    pixels: Pixels, rows: Sequence[int | None], texts: Sequence[str | None], compute: Compute
) -> list[dict[str, npt.NDArray[Any]]]:
    """Compute the outputs of B posts, by name, without the batch dimension; posts with the same channels are batched.

    Args:
        pixels: (P, 3, S, S), of posts with a photo.
        rows: Row in `pixels` of each post's photo; None if it has none.
        texts: Text of each post; None if it has none.
        compute: From pixels and texts to outputs.
    """
    found: list[dict[str, npt.NDArray[Any]]] = [{} for _ in rows]
    kinds: dict[tuple[bool, bool], list[int]] = {}
    for post, (row, text) in enumerate(zip(rows, texts, strict=True)):
        kinds.setdefault((row is not None, text is not None), []).append(post)
    for (photo, words), members in kinds.items():
        some: Pixels | None = None
        if photo:
            chosen = [rows[post] for post in members]
            some = pixels if chosen == list(range(len(pixels))) else pixels[cast("list[int]", chosen)]
        outputs = compute(some, cast("list[str]", [texts[post] for post in members]) if words else None)
        for number, post in enumerate(members):
            found[post] = {name: values[number] for name, values in outputs.items()}
    return found


def _lacking(alone: Sequence[Channel]) -> str:
    if len(alone) > 1:
        return "neither photo nor text"
    if "image" in alone:
        return "no photo, and the model cannot use text alone"
    return "no text, and the model uses only text"


def pair_posts(images: Images | None, texts: Texts | None) -> Iterator[Post]:
    """Yield posts; without texts, folders and patterns are expanded to their photos.

    Raises:
        IntclipError: There are none, the numbers of photos and texts differ, or a text is something else.
    """
    given = [texts] if isinstance(texts, str) else [] if texts is None else texts
    words = (_text(text, number) for number, text in enumerate(given, 1))
    if images is None:
        if texts is None:
            raise IntclipError("give images, texts, or both")
        for text in words:
            yield None, text
        return
    if texts is None:
        for image in expand(images):
            yield image, None
        return
    end = object()
    photos = cast("list[ImageInput | None]", [images] if is_photo(images) else images)
    for photo in photos:
        text_or_end = next(words, end)
        if text_or_end is end:
            raise IntclipError("more photos than texts; give one text per photo, None if it has no text")
        yield photo, cast("str | None", text_or_end)
    if next(words, end) is not end:
        raise IntclipError("more texts than photos; give None as photo if a post has none")


def _text(value: object, number: int) -> str | None:
    """Return a text; None for missing values of pandas (NaN, NA)."""
    if value is None or isinstance(value, str):
        return value
    if type(value).__name__ == "NAType" or (isinstance(value, float | np.floating) and np.isnan(value)):
        return None
    raise IntclipError(f"text {number} is {value!r:.60}, not a text; give a text, or None if a post has none")


def expand(images: Images) -> Iterator[ImageInput]:
    """Yield photos, expanding folders and glob patterns.

    Raises:
        ImageError: A folder has no photos, or a pattern matches none.
        IntclipError: One of them is None.
    """
    for image in cast("Iterable[ImageInput | None]", [images] if is_photo(images) else images):
        if image is None:
            raise IntclipError("a post has neither photo nor text")
        if isinstance(image, str | Path) and _stands_for_many(image):
            yield from find_images(image)
        else:
            yield image


def _stands_for_many(path: str | Path) -> bool:
    try:
        place = Path(path)
        return place.is_dir() or (any(sign in str(path) for sign in "*?[") and not place.exists())
    except (OSError, ValueError):  # too long, or with a NUL: reading it will report it
        return False


def _renamed(error: ImageError, source: str) -> ImageError:
    return error if source in str(error) else ImageError(f"{source}: {error}")
