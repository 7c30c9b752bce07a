"""Speed of a model on this machine: loading, batches, one photo, and photos from files."""

import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from intclip.data.images import ImageInput
from intclip.inference.predictor import Predictor
from intclip.machine import describe_machine
from intclip.timing import median_seconds

PHOTO_SIZE = (500, 375)
"""Width and height, in pixels, of generated JPEGs."""
_MODULES = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}


def installed_engines() -> list[str]:
    """Return the installed engines."""
    return [engine for engine, module in _MODULES.items() if find_spec(module) is not None]


def measure(
    open_model: Callable[[str], Predictor],
    engines: Sequence[str],
    *,
    photos: Sequence[Path] = (),
    batch_size: int = 32,
    seconds: float = 3.0,
    announce: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure a model on some engines.

    Args:
        open_model: Loads the model for an engine.
        engines: Their names.
        photos: Files for the from-files rate; default: JPEGs of `PHOTO_SIZE` in memory.
        batch_size: Photos per batch.
        seconds: Approximate measuring time per figure.
        announce: Called with the name of the next measurement.

    Returns:
        "machine", "batch_size", "photos" (number and kind), and "engines": for each name "load_s"
        (from a cold start to the first answer), "photos_per_s" (computation only, median batch), "one_photo_ms"
        (median latency of computing one photo), and "from_files_per_s" (decode, resize and compute).
    """
    sources: list[ImageInput] = list(photos) or list(made_photos(4 * batch_size))
    results = {}
    for engine in engines:
        announce(f"{engine}: loading")
        start = time.perf_counter()
        model = open_model(engine)
        size = model.card.preprocessing.size
        pixels = noise_pixels(batch_size, size)
        model.predict_pixels(pixels[:1])
        loaded = time.perf_counter() - start
        announce(f"{engine}: batches of {batch_size}")
        batch = median_seconds(partial(model.predict_pixels, pixels), seconds=seconds)
        announce(f"{engine}: one photo")
        one = median_seconds(partial(model.predict_pixels, pixels[:1]), seconds=seconds)
        announce(f"{engine}: from files")
        results[engine] = {
            "load_s": round(loaded, 3),
            "photos_per_s": round(batch_size / batch, 1),
            "one_photo_ms": round(1000 * one, 2),
            "from_files_per_s": round(files_rate(model, sources, batch_size, seconds), 1),
        }
    kind = "given" if photos else f"made, {PHOTO_SIZE[0]} × {PHOTO_SIZE[1]} JPEG"
    return {
        "machine": describe_machine(),
        "batch_size": batch_size,
        "photos": {"count": len(sources), "kind": kind},
        "engines": results,
    }


def files_rate(model: Predictor, sources: Sequence[ImageInput], batch_size: int, seconds: float) -> float:
    """Measure photos/s from encoded photos to predictions, over whole passes."""
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        count += len(model.predict(sources, batch_size=batch_size, errors="collect"))
    return count / (time.perf_counter() - start)


def noise_pixels(count: int, size: int) -> npt.NDArray[np.float32]:
    """Return fixed random pixels (count, 3, size, size)."""
    return np.random.default_rng(0).standard_normal((count, 3, size, size)).astype(np.float32)


def made_photos(count: int) -> list[bytes]:
    """Return fixed JPEG files in memory with about as much detail as photos."""
    rng = np.random.default_rng(0)
    width, height = PHOTO_SIZE
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8))
        photo = coarse.resize(PHOTO_SIZE).filter(ImageFilter.GaussianBlur(2))
        buffer = io.BytesIO()
        photo.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files
