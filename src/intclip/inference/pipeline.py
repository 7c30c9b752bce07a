"""Photos in, probabilities out, in order: decoding in threads beside computing, with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, describe, find_images, is_photo
from intclip.data.loading import array_batches
from intclip.data.naming import has_name
from intclip.errors import ImageError, IntclipError
from intclip.inference.engines import Arrays, Engine

Texts = str | Iterable[str | None]
"""Words of posts, one text each; None or blank where a post has none."""
Images = ImageInput | Iterable[ImageInput | None]
"""Photos; None where a post has none."""
Post = tuple[ImageInput | None, str | None]
"""A photo, the words beside it, or both."""
Compute = Callable[[npt.NDArray[np.float32], Sequence[str | None]], Arrays]
"""From the pixels of a batch and the words beside each photo to outputs."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One photo's way through the pipeline.

    Attributes:
        source: The photo's path, or what kind of object it was and where in the list it stood.
        outputs: The engine's outputs for this photo, by name, without the batch; empty where it could not be read.
        error: Why it could not be read.
    """

    source: str
    outputs: dict[str, npt.NDArray[Any]]
    error: ImageError | None = None


def score(
    sources: Iterable[ImageInput],
    preprocess: Preprocess,
    engine: Engine,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[Scored]:
    """`score_posts` of photos without words.

    Args:
        sources: Photos as `read_image` takes them; any iterable.
        preprocess: From photo to pixels.
        engine: From pixels to outputs.
        batch_size: Photos the engine takes at once.
        workers: Threads that decode; as many as there are usable cores by default.
    """
    posts = ((source, None) for source in sources)
    return score_posts(posts, preprocess, lambda pixels, _: engine(pixels), batch_size=batch_size, workers=workers)


def score_posts(
    posts: Iterable[Post],
    preprocess: Preprocess,
    compute: Compute,
    *,
    batch_size: int,
    workers: int | None = None,
) -> Iterator[Scored]:
    """Score photos with the words beside them, in order; a photo that cannot be read takes its place with its error.

    Posts are read as they are needed, two batches ahead of the engine, and nothing is kept behind it: memory does not
    grow with their number.

    Args:
        posts: Photos as `read_image` takes them, and words; any iterable. One without a photo cannot be read.
        preprocess: From photo to pixels.
        compute: From pixels and words to outputs.
        batch_size: Posts computed at once.
        workers: Threads that decode; as many as there are usable cores by default.
    """
    ahead: deque[tuple[str, str | None]] = deque()

    def photos() -> Iterator[ImageInput | None]:
        for position, (source, text) in enumerate(posts):
            ahead.append((name_source(source, position), text))
            yield source

    for batch in array_batches(photos(), preprocess, batch_size, workers=workers):
        rows = {int(index): row for row, index in enumerate(batch.indices)}
        errors = dict(batch.errors)
        order = sorted([*rows, *errors])
        taken = {index: ahead.popleft() for index in order}
        outputs = compute(batch.pixels, [taken[index][1] for index in rows]) if rows else {}
        for index in order:
            source = taken[index][0]
            if index in errors:
                yield Scored(source, {}, _renamed(errors[index], source))
            else:
                yield Scored(source, {name: values[rows[index]] for name, values in outputs.items()})


def pair_posts(images: Images | None, texts: Texts | None) -> Iterator[Post]:
    """Posts one by one; folders and patterns stand for photos where there are no texts.

    Raises:
        IntclipError: There is nothing, or photos and texts differ in number.
    """
    words = iter([texts] if isinstance(texts, str) else [] if texts is None else texts)
    if images is None:
        if texts is None:
            raise IntclipError("give images, texts, or both")
        for text in words:
            yield None, text
        return
    single = is_photo(images)
    if texts is None:
        several = cast("ImageInput | list[ImageInput]", images) if single else _present(images)
        for image in expand(several):
            yield image, None
        return
    end = object()
    photos = cast("list[ImageInput | None]", [images] if single else images)
    for photo in photos:
        text_or_end = next(words, end)
        if text_or_end is end:
            raise IntclipError("there are more photos than texts; give one text a photo, None where it has no words")
        yield photo, cast("str | None", text_or_end)
    if next(words, end) is not end:
        raise IntclipError("there are more texts than photos; give None in the photos where a post has none")


def expand(images: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Photos one by one; a folder or a glob pattern stands for the photos in it.

    Raises:
        ImageError: A folder holds no photo, or a pattern matches none.
    """
    for image in cast("Iterable[ImageInput]", [images] if is_photo(images) else images):
        if isinstance(image, str | Path) and _stands_for_many(image):
            yield from find_images(image)
        else:
            yield image


def _stands_for_many(path: str | Path) -> bool:
    try:
        place = Path(path)
        return place.is_dir() or (any(sign in str(path) for sign in "*?[") and not place.exists())
    except (OSError, ValueError):  # too long, or with a NUL: reading it will say so
        return False


def name_source(source: ImageInput | None, position: int) -> str:
    """A path names itself; anything else is named by its place, counted from 1."""
    if source is None:
        return f"text {position + 1}"
    return describe(source) if has_name(source) else f"image {position + 1}"


def _renamed(error: ImageError, source: str) -> ImageError:
    return error if source in str(error) else ImageError(f"{source}: {error}")


def _present(images: Images) -> Iterator[ImageInput]:
    for image in cast("list[ImageInput | None]", images):
        if image is None:
            raise IntclipError("a post has neither a photo nor words")
        yield image
