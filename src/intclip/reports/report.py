"""A report of photos or posts: one HTML file without any network, with intents by level, and evidence on demand.

The page holds a thumbnail a photo, the probabilities, and the region logits of its strongest labels as bytes (a 7 × 7
map takes 49), which the browser turns into an overlay when it is asked for: 2,000 photos stay a page of some MB.
"""

import base64
import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.data.images import ImageInput, data_url, read_image
from intclip.errors import ImageError, IntclipError
from intclip.evidence.evidence import LEGEND, colors
from intclip.files import write_text
from intclip.inference.card import ATTENTION_OUTPUT, MAP_PREFIX
from intclip.inference.pipeline import Images, Scored, Texts, expand, score
from intclip.inference.predictor import Predictor

TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL = 320
"""Longest side of a photo in the page, in pixels."""
EVIDENCE_LABELS = 3
"""Labels of a photo whose evidence the page holds: its most probable ones."""
ATTENTION_SIDE = 8
"""Largest side of a grid of regions whose attention the page holds: it grows with the fourth power, 4 KB for 8."""
PER_MILLE = 1000
"""Probabilities are whole numbers in the page."""


class PhotoEntry(TypedDict):
    """One photo or post as the page holds it.

    name: file name; path: where it lay; image: thumbnail as a data URI; size: its width and height; probabilities: per
    mille (K,); evidence: label index to branch to region logits as base64 bytes, row by row, 0 the map's lowest and 255
    its highest; box: the part (left, top, right, bottom) that the model saw, as shares of the photo.

    attention: which sight regions answer which semantic one (queries by keys), as the maps, each row by its largest; of
    models that have it, on grids up to `ATTENTION_SIDE`.

    Of posts also thresholds: per mille (K,), of the channels that the post has; text: its words; words: label index to
    percent of the strongest word's weight, one a word, below 0 against the label; conflict: of photo and words, per
    mille; disputed: label, percent by the photo, percent by the words. Of words alone image is empty.
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


def write_folder_report(
    images: Images | None,
    predictor: Predictor,
    path: str | os.PathLike[str],
    *,
    texts: Texts | None = None,
    title: str = "Why these photos were taken",
    batch_size: int = 32,
) -> list[ImageError]:
    """Score photos, or posts by a model of posts, and write their report.

    Args:
        images: As for `Predictor.predict`.
        predictor: The model.
        path: The HTML file to write.
        texts: The posts' words, for a model of posts; as for `Predictor.predict`.
        title: Heading of the page.
        batch_size: Photos scored at once.

    Returns:
        One error for each photo that could not be read; the page lists them too.

    Raises:
        ImageError: There is no readable photo at all.
        IntclipError: There are texts, and the model reads none.
        StorageError: The file cannot be written.
    """
    if predictor.card.method == "posts":
        from intclip.inference.post_predictor import PostPredictor
        from intclip.reports.post_report import post_entries

        entries, failures = post_entries(images, texts, cast("PostPredictor", predictor), batch_size=batch_size)
    elif texts is not None or images is None:
        raise IntclipError(
            f"a report with words takes a model of `intclip fit`, not {predictor.card.model}; give photos alone"
        )
    else:
        photos = cast("ImageInput | Iterable[ImageInput]", images)
        entries, failures = _photo_entries(photos, predictor, batch_size)
    if not entries:
        raise ImageError(f"no photo could be read; the first one: {failures[0]}" if failures else "no photos")
    write_text(path, render(title, predictor, entries, failures))
    return failures


def _photo_entries(
    images: ImageInput | Iterable[ImageInput], predictor: Predictor, batch_size: int
) -> tuple[list[PhotoEntry], list[ImageError]]:
    entries: list[PhotoEntry] = []
    failures: list[ImageError] = []
    engine = predictor.engine(maps=bool(predictor.card.maps))
    sources, scored = itertools.tee(expand(images))
    for photo in score(scored, predictor.card.preprocessing, engine, batch_size=batch_size):
        source = next(sources)
        if photo.error is not None:
            failures.append(photo.error)
        else:
            entries.append(_entry(source, photo, predictor))
    return entries, failures


def render(title: str, predictor: Predictor, entries: list[PhotoEntry], failures: list[ImageError]) -> str:
    """The whole page as HTML."""
    from jinja2 import Environment, FileSystemLoader

    taxonomy = predictor.taxonomy
    levels = [
        {"name": level, "labels": list(names), "members": _members(predictor, position)}
        for position, (level, names) in enumerate(taxonomy.levels.items())
    ]
    data = {
        "model": predictor.card.model,
        "taxonomy": taxonomy.name,
        "exclusive": taxonomy.exclusive,
        "levels": levels,
        "thresholds": thresholds_per_mille(predictor.thresholds),
        "branches": list(predictor.card.maps) or (["fused"] if any(entry["evidence"] for entry in entries) else []),
        "palette": colors(np.linspace(0, 1, 256)).round().astype(int).tolist(),
        "photos": entries,
        "failures": [str(failure) for failure in failures],
    }
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        legend=LEGEND,
        style=_read("look.css") + _read("report.css"),
        script=_read("overlay.js") + _read("report.js"),
        # A "<" could end the script element or open another, whatever stands in a file name or a post.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _members(predictor: Predictor, level: int) -> list[list[int]]:
    """For every label of a level, the indices of the classes below it."""
    taxonomy = predictor.taxonomy
    names = list(taxonomy.levels.values())[level]
    if level == 0:
        return [[index] for index in range(len(names))]
    above = [taxonomy.parents[name][level - 1] for name in taxonomy.names]
    return [[index for index, parent in enumerate(above) if parent == name] for name in names]


def _entry(source: ImageInput, photo: Scored, predictor: Predictor) -> PhotoEntry:
    shown = thumbnail(read_image(source, min_side=THUMBNAIL), photo.source, predictor.card.preprocessing)
    probabilities = photo.outputs["probabilities"]
    strongest = np.argsort(-probabilities, kind="stable")[:EVIDENCE_LABELS]
    maps = {key.removeprefix(MAP_PREFIX): value for key, value in photo.outputs.items() if key.startswith(MAP_PREFIX)}
    entry = PhotoEntry(
        name=shown["name"],
        path=shown["path"],
        image=shown["image"],
        size=shown["size"],
        box=shown["box"],
        probabilities=per_mille(probabilities, predictor.thresholds, exclusive=predictor.taxonomy.exclusive),
        evidence={int(label): {branch: packed(values[label]) for branch, values in maps.items()} for label in strongest}
        if maps
        else {},
    )
    attention = photo.outputs.get(ATTENTION_OUTPUT)
    if attention is not None and len(attention) <= ATTENTION_SIDE**2:
        entry["attention"] = packed(attention / attention.max(axis=1, keepdims=True))
    return entry


def per_mille(
    probabilities: npt.NDArray[np.floating[Any]], thresholds: npt.NDArray[np.floating[Any]], *, exclusive: bool = False
) -> list[int]:
    """Probabilities (K,) as whole numbers that reach `thresholds_per_mille` where they reach their thresholds (K,).

    Where labels exclude each other the first of the largest numbers is the label that the model predicts instead.
    """
    rounded = (probabilities * PER_MILLE).round().astype(int)
    if exclusive:
        best = int(probabilities.argmax())
        rounded[:best] = np.minimum(rounded[:best], rounded[best] - 1)  # those before it that rounding made its equals
        return list(map(int, rounded))
    least = np.asarray(thresholds_per_mille(thresholds))
    held = probabilities >= thresholds
    found: list[int] = np.where(held, np.maximum(rounded, least), np.minimum(rounded, least - 1)).tolist()
    return found


def thresholds_per_mille(thresholds: npt.NDArray[np.floating[Any]]) -> list[int]:
    """Thresholds (K,) as the page holds them."""
    return [round(float(threshold) * PER_MILLE) for threshold in thresholds]


class Shown(TypedDict):
    """The part of an entry that shows the photo."""

    name: str
    path: str
    image: str
    size: tuple[int, int]
    box: tuple[float, float, float, float]


def thumbnail(image: Image.Image, source: str, preprocess: Preprocess) -> Shown:
    """A photo as the page shows it; the image itself becomes the thumbnail."""
    box = preprocess.source_box(image.size)
    width, height = image.size
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return Shown(
        name=Path(source).name,
        path=source,
        image=data_url(image, THUMBNAIL, quality=72),
        size=image.size,
        box=(box[0] / width, box[1] / height, box[2] / width, box[3] / height),
    )


def packed(regions: npt.NDArray[np.floating[Any]]) -> str:
    """Region logits (h, w) as base64: a byte for h, one for w, then h · w bytes from the lowest to the highest."""
    low, high = float(regions.min()), float(regions.max())
    scaled = (regions - low) / (high - low) if high > low else np.zeros_like(regions)
    content = bytes(regions.shape) + (scaled * 255).round().astype(np.uint8).tobytes()
    return base64.b64encode(content).decode("ascii")
