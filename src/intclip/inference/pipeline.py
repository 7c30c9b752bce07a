"""Photos in, probabilities out, in order: decoding in threads beside computing, with bounded memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, describe, find_images
from intclip.data.loading import array_batches
from intclip.errors import ImageError
from intclip.inference.engines import Engine

SINGLE_KINDS = (str, Path, bytes, Image.Image, np.ndarray)
"""What is one photo (or one folder) and not a list of them."""


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
    """Score photos in order; a photo that cannot be read takes its place with its error.

    Sources are read as they are needed, two batches ahead of the engine, and nothing is kept behind it: memory does not
    grow with their number.

    Args:
        sources: Photos as `read_image` takes them; any iterable.
        preprocess: From photo to pixels.
        engine: From pixels to outputs.
        batch_size: Photos the engine takes at once.
        workers: Threads that decode; as many as there are usable cores by default.
    """
    names: deque[str] = deque()

    def named() -> Iterator[ImageInput]:
        for position, source in enumerate(sources):
            names.append(_name(source, position))
            yield source

    for batch in array_batches(named(), preprocess, batch_size, workers=workers):
        outputs = engine(batch.pixels) if len(batch.indices) else {}
        rows = {int(index): row for row, index in enumerate(batch.indices)}
        errors = dict(batch.errors)
        for index in sorted([*rows, *errors]):
            source = names.popleft()
            if index in errors:
                yield Scored(source, {}, _renamed(errors[index], source))
            else:
                yield Scored(source, {name: values[rows[index]] for name, values in outputs.items()})


def expand(images: ImageInput | Iterable[ImageInput]) -> Iterator[ImageInput]:
    """Photos one by one; a folder or a glob pattern stands for the photos in it.

    Raises:
        ImageError: A folder holds no photo, or a pattern matches none.
    """
    for image in [images] if isinstance(images, SINGLE_KINDS) else images:  # type: ignore[union-attr]
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


def _name(source: ImageInput, position: int) -> str:
    """A path names itself; anything else is named by its place, counted from 1."""
    name = describe(source)
    return name if not isinstance(source, bytes | Image.Image | np.ndarray) else f"image {position + 1}"


def _renamed(error: ImageError, source: str) -> ImageError:
    return error if source in str(error) else ImageError(f"{source}: {error}")
