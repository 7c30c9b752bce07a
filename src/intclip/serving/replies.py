"""Convert requests to posts, and predictions and evidence to responses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.data.images import describe, jpeg_base64, read_image
from intclip.errors import IntclipError
from intclip.evidence.evidence import Evidence
from intclip.evidence.heat import overlay
from intclip.evidence.words import WordEvidence
from intclip.inference.prediction import Prediction
from intclip.inference.predictor import Predictor
from intclip.serving.answers import Box, Explanation, Figure, MapName, ModelInfo, PredictRequest, Result, TaxonomyInfo
from intclip.serving.batcher import Post

PICTURE_SIDE = 1024
"""Longer side, in pixels, of the pictures of evidence."""


def make_posts(asked: PredictRequest, most: int) -> list[Post]:
    """Return the posts of a request.

    Args:
        asked: A valid request.
        most: Maximum number of posts.

    Raises:
        IntclipError: There are none or too many, or the numbers of photos and texts differ.
    """
    count = max(len(asked.images), len(asked.texts))
    if count == 0:
        raise IntclipError("the request has no photo; send one in the field images")
    if count > most:
        raise IntclipError(f"{count} photos in one request; send at most {most} at a time")
    if asked.images and asked.texts and len(asked.images) != len(asked.texts):
        counts = f"{len(asked.images)} images and {len(asked.texts)} texts"
        raise IntclipError(f"{counts}; send one text per photo, blank if a post has none")
    images = asked.images or [None] * count
    return list(zip(images, asked.texts or [None] * count, strict=True))


def make_sources(posts: Sequence[Post], names: Sequence[str | None]) -> list[str]:
    """Name each post in the response: by its file name, or its kind and position, counted from 1."""
    kept = list(names) + [None] * (len(posts) - len(names))
    kinds = ["text" if image is None else "image" for image, _ in posts]
    return [name or f"{kind} {place}" for place, (kind, name) in enumerate(zip(kinds, kept, strict=True), start=1)]


def make_results(
    predictions: Sequence[Prediction | Exception],
    sources: Sequence[str],
    level: int,
    thresholds: npt.NDArray[np.float32] | None = None,
) -> list[Result]:
    """Convert predictions or errors to results.

    Args:
        predictions: One per post, or the reason why there is none.
        sources: Names of the posts.
        level: Level of the taxonomy for the scores.
        thresholds: (K,), instead of those of the predictions.
    """
    return [
        _make_result(one if thresholds is None else replace(one, thresholds=thresholds), source, level)
        if isinstance(one, Prediction)
        else Result(source=source, error=reason(one, source), labels=[], scores=None)
        for one, source in zip(predictions, sources, strict=True)
    ]


def _make_result(prediction: Prediction, source: str, level: int) -> Result:
    row = prediction.to_dict() | {"source": source}
    if level:
        row["scores"] = prediction.level(level)
    return Result.model_validate(row)


def reason(error: Exception, source: str) -> str:
    """Return the error with the photo's name in it."""
    unnamed, text = describe(b""), str(error)
    return text.replace(unnamed, source) if unnamed in text else f"{source}: {text}"


def draw_evidence(image: bytes, evidence: Evidence, branch: MapName, max_pixels: int) -> str:
    """Draw the photo with a map, JPEG in base64.

    Raises:
        ImageError: The photo cannot be read.
    """
    photo = read_image(image, max_pixels=max_pixels)
    scale = min(1.0, PICTURE_SIDE / max(photo.size))
    width, height = (max(1, round(side * scale)) for side in photo.size)
    left, top, right, bottom = (edge * scale for edge in evidence.box)
    drawn = overlay(photo.resize((width, height)), getattr(evidence, branch), (left, top, right, bottom))
    return jpeg_base64(drawn, quality=90)


def make_explanation(model: str, evidence: Evidence, picture: str | None = None) -> Explanation:
    """Convert evidence in a photo to a response of `/v1/explain`."""
    return Explanation(
        model=model,
        label=evidence.label,
        probability=evidence.probability,
        branches=list(evidence.branches),
        regions={branch: np.asarray(logits).tolist() for branch, logits in evidence.regions.items()},
        box=Box(**dict(zip(Box.model_fields, evidence.box, strict=True))),
        picture=picture,
    )


def make_word_explanation(model: str, evidence: WordEvidence) -> Explanation:
    """Convert evidence in a text to a response of `/v1/explain`."""
    return Explanation(model=model, label=evidence.label, probability=evidence.probability, words=list(evidence.words))


def describe_model(name: str, model: Predictor, default: bool) -> ModelInfo:
    """Describe a model for `/v1/models`."""
    card = model.card
    return ModelInfo(
        name=name,
        method=card.method,
        backbone=card.backbone,
        taxonomy=model.taxonomy.name,
        task=card.task,
        reads=list(model.channels),
        explains_words="text" in model.alone,
        evidence=bool(model.maps),
        engine=model.engine_name,
        arithmetic=card.arithmetic,
        input_size=card.preprocessing.size,
        default=default,
        note=model.note,
        held_out=_held_out(model.metrics),
    )


def _held_out(metrics: Mapping[str, Any]) -> dict[str, Figure]:
    """Return a bundle's metrics with intervals; empty if they are missing or have another layout."""
    try:
        split = metrics.get("test") or metrics.get("val") or {}
        bounds = split.get("intervals", {}).items()
        return {name: Figure(value=split["headline"][name], low=low, high=high) for name, (low, high) in bounds}
    except (AttributeError, KeyError, TypeError, ValueError):  # written by someone else
        return {}


def describe_taxonomies(models: Mapping[str, Predictor]) -> list[TaxonomyInfo]:
    """List each taxonomy once; different ones with the same name are both listed."""
    found: list[tuple[dict[str, Any], TaxonomyInfo]] = []
    for name, model in models.items():
        taxonomy = model.taxonomy
        content = taxonomy.to_dict()
        info = next((info for known, info in found if known == content), None)
        if info is None:
            info = TaxonomyInfo(
                name=taxonomy.name,
                models=[],
                levels={level: list(names) for level, names in taxonomy.levels.items()},
                parents={label: list(above) for label, above in taxonomy.parents.items()},
                thresholds={},
                definitions=dict(taxonomy.definitions),
                exclusive=taxonomy.exclusive,
                source=taxonomy.source,
            )
            found.append((content, info))
        info.models.append(name)
        info.thresholds[name] = dict(zip(taxonomy.names, model.thresholds.tolist(), strict=True))
        if len(model.channels) > 1:
            info.channel_thresholds[name] = {
                channel: dict(zip(taxonomy.names, model.resolve_thresholds(None, [channel]).tolist(), strict=True))
                for channel in model.channels
            }
    return [info for _, info in found]
