"""Entries of a report: thumbnail, probabilities, evidence and coloured words of each photo or post."""

import base64
from collections.abc import Iterable
from itertools import tee
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, data_url, read_image
from intclip.errors import ImageError
from intclip.evidence.words import occlusion, part
from intclip.inference.card import ATTENTION_OUTPUT, MAP_PREFIX
from intclip.inference.pipeline import Post, Scored
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Predictor

THUMBNAIL = 320
"""Longest side of a photo in the page, in pixels."""
EVIDENCE_LABELS = 3
"""Number of a photo's most probable labels with evidence in the page."""
ATTENTION_SIDE = 8
"""Largest grid side with attention in the page: its size grows with the fourth power, 4 KB for 8."""
PER_MILLE = 1000
"""Probabilities are integers in the page."""
DISPUTED = 2
"""Number of disputed labels that the page shows for a post."""


class PhotoEntry(TypedDict):
    """One photo or post of the page.

    name: file name; path: its path; image: thumbnail as a data URI; size: its width and height; probabilities: per
    mille (K,); evidence: label index to branch to region logits as base64 bytes, row by row, 0 the map's lowest and 255
    its highest; box: the part (left, top, right, bottom) that the model saw, as shares of the photo.

    attention: sight regions by semantic region (queries by keys), encoded like the maps, each row scaled by its
    largest; only for models that have it, on grids up to `ATTENTION_SIDE`.

    For models that use text also thresholds: per mille (K,), for the post's channels; text: its text;
    words: label index to percent of the strongest word's weight, one per word, negative against the label; conflict: of
    photo and text, per mille; disputed: label, percent by photo, percent by text. Without a photo image is empty.
    """

    name: str
    path: str
    image: str
    size: tuple[int, int]
    probabilities: list[int]
    evidence: dict[int, dict[str, str]]
    box: tuple[float, float, float, float]
    attention: NotRequired[str]
    thresholds: NotRequired[list[int]]
    text: NotRequired[list[str]]
    words: NotRequired[dict[int, list[int]]]
    conflict: NotRequired[int]
    disputed: NotRequired[list[tuple[str, int, int]]]


def make_entries(
    posts: Iterable[Post], predictor: Predictor, *, batch_size: int
) -> tuple[list[PhotoEntry], list[ImageError]]:
    """Return entries of photos, texts, or both, and one error per unreadable post."""
    entries: list[PhotoEntry] = []
    failures: list[ImageError] = []
    given, scored = tee(posts)
    for number, ((image, text), found) in enumerate(
        zip(given, predictor.score(scored, batch_size=batch_size, maps=True), strict=True), start=1
    ):
        if found.error is not None:
            failures.append(found.error)
        else:
            entries.append(_entry(number, image, text, found, predictor))
    return entries, failures


def _entry(number: int, image: ImageInput | None, text: str | None, scored: Scored, predictor: Predictor) -> PhotoEntry:
    prediction = predictor.prediction(scored)
    probabilities, thresholds = prediction.probabilities, prediction.thresholds
    strongest = np.argsort(-probabilities, kind="stable")[:EVIDENCE_LABELS]
    maps = {key.removeprefix(MAP_PREFIX): value for key, value in scored.outputs.items() if key.startswith(MAP_PREFIX)}
    entry = PhotoEntry(
        name=f"post {number}",
        path=scored.source,
        image="",
        size=(0, 0),
        box=(0.0, 0.0, 1.0, 1.0),
        probabilities=per_mille(probabilities, thresholds, exclusive=predictor.taxonomy.exclusive),
        evidence={int(label): {branch: packed(values[label]) for branch, values in maps.items()} for label in strongest}
        if maps
        else {},
    )
    if image is not None and "image" in scored.channels:
        shown = thumbnail(read_image(image, min_side=THUMBNAIL), scored.source, predictor.card.preprocessing)
        entry |= cast("PhotoEntry", shown)
    attention = scored.outputs.get(ATTENTION_OUTPUT)
    if attention is not None and len(attention) <= ATTENTION_SIDE**2:
        entry["attention"] = packed(attention / attention.max(axis=1, keepdims=True))
    if "text" in predictor.channels:
        entry |= _words(text, strongest, prediction, predictor)
    return entry


def _words(
    text: str | None, strongest: npt.NDArray[np.int64], prediction: Prediction, predictor: Predictor
) -> PhotoEntry:
    """Return the fields that models with text add to an entry."""
    added: dict[str, Any] = {"thresholds": thresholds_per_mille(prediction.thresholds)}
    if text and (parts := part(text)):
        added["text"] = parts
        if "text" in predictor.alone:
            _, falls = occlusion(parts, predictor.word_scores)
            added["words"] = {int(label): _percent(falls[:, label]) for label in strongest}
    if prediction.conflict is not None:
        added["conflict"] = round(prediction.conflict.score * PER_MILLE)
        added["disputed"] = [
            (name, round(by_photo * 100), round(by_words * 100))
            for name, (by_photo, by_words) in list(prediction.conflict.disputed.items())[:DISPUTED]
        ]
    return cast("PhotoEntry", added)


def _percent(weights: npt.NDArray[np.float64]) -> list[int]:
    """Scale weights to percent of the largest, from -100 to 100."""
    most = float(np.abs(weights).max())
    return [round(100 * float(value) / most) if most else 0 for value in weights]


def per_mille(
    probabilities: npt.NDArray[np.floating[Any]], thresholds: npt.NDArray[np.floating[Any]], *, exclusive: bool = False
) -> list[int]:
    """Round probabilities (K,) so that they reach `thresholds_per_mille` exactly if they reach their thresholds (K,).

    For exclusive labels, the first of the largest numbers is the predicted label.
    """
    rounded = (probabilities * PER_MILLE).round().astype(int)
    if exclusive:
        best = int(probabilities.argmax())
        rounded[:best] = np.minimum(rounded[:best], rounded[best] - 1)  # earlier ones that rounding made equal
        return list(map(int, rounded))
    least = np.asarray(thresholds_per_mille(thresholds))
    held = probabilities >= thresholds
    found: list[int] = np.where(held, np.maximum(rounded, least), np.minimum(rounded, least - 1)).tolist()
    return found


def thresholds_per_mille(thresholds: npt.NDArray[np.floating[Any]]) -> list[int]:
    """Convert thresholds (K,) for the page."""
    return [round(float(threshold) * PER_MILLE) for threshold in thresholds]


class Thumbnail(TypedDict):
    """The fields of an entry for the photo."""

    name: str
    path: str
    image: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]


def thumbnail(image: Image.Image, source: str, preprocess: Preprocess) -> Thumbnail:
    """Make a photo's thumbnail, in place."""
    box = preprocess.source_box(image.size)
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return Thumbnail(
        name=Path(source).name,
        path=source,
        image=data_url(image, THUMBNAIL, quality=72),
        size=image.size,
        box=(box[0] / width, box[1] / height, box[2] / width, box[3] / height),
    )


def packed(regions: npt.NDArray[np.floating[Any]]) -> str:
    """Encode region logits (h, w) as base64: a byte each for h and w, then h · w bytes from lowest to highest."""
    low, high = float(regions.min()), float(regions.max())
    scaled = (regions - low) / (high - low) if high > low else np.zeros_like(regions)
    content = bytes(regions.shape) + (scaled * 255).round().astype(np.uint8).tobytes()
    return base64.b64encode(content).decode("ascii")
