"""From a request to posts, and from predictions and evidence to answers."""

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
from intclip.serving.answers import Box, Branch, Explanation, ModelInfo, PredictRequest, Result, TaxonomyInfo
from intclip.serving.batcher import Post

PICTURE_SIDE = 1024
"""Longer side, in pixels, of the pictures of evidence."""


def make_posts(asked: PredictRequest, most: int) -> list[Post]:
    """Photos with their words.

    Args:
        asked: A valid request.
        most: Photos that are taken.

    Raises:
        IntclipError: There is none, there are too many, or photos and words differ in number.
    """
    count = max(len(asked.images), len(asked.texts))
    if count == 0:
        raise IntclipError("there is no photo in the request; send one in the field images")
    if count > most:
        raise IntclipError(f"{count} photos in one request; at most {most} are taken, send them in several")
    if asked.images and asked.texts and len(asked.images) != len(asked.texts):
        counts = f"{len(asked.images)} images and {len(asked.texts)} texts"
        raise IntclipError(f"{counts}; give one text a photo, blank where a post has none")
    images = asked.images or [None] * count
    return list(zip(images, asked.texts or [None] * count, strict=True))


def make_sources(posts: Sequence[Post], names: Sequence[str | None]) -> list[str]:
    """What each post is called in the answer: its file's name, else its kind and place, counted from 1."""
    kept = list(names) + [None] * (len(posts) - len(names))
    kinds = ["text" if image is None else "image" for image, _ in posts]
    return [name or f"{kind} {place}" for place, (kind, name) in enumerate(zip(kinds, kept, strict=True), start=1)]


def make_results(
    found: Sequence[Prediction | Exception],
    sources: Sequence[str],
    level: int,
    thresholds: npt.NDArray[np.float32] | None = None,
) -> list[Result]:
    """Predictions, or why there is none, as the service answers them.

    Args:
        found: One for each post.
        sources: What each post is called.
        level: Level of the taxonomy at which the scores are read.
        thresholds: (K,), in place of those of the predictions.
    """
    return [
        _make_result(one if thresholds is None else replace(one, thresholds=thresholds), source, level)
        if isinstance(one, Prediction)
        else Result(source=source, error=reason(one, source), labels=[], scores=None)
        for one, source in zip(found, sources, strict=True)
    ]


def _make_result(prediction: Prediction, source: str, level: int) -> Result:
    row = prediction.to_dict() | {"source": source}
    if level:
        row["scores"] = prediction.level(level)
    return Result.model_validate(row)


def reason(error: Exception, source: str) -> str:
    """The error with the photo's name in it."""
    unnamed, text = describe(b""), str(error)
    return text.replace(unnamed, source) if unnamed in text else f"{source}: {text}"


def draw_evidence(image: bytes, evidence: Evidence, branch: Branch, max_pixels: int) -> str:
    """The photo with a map laid over it, JPEG in base64.

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
    """Evidence in a photo as `/v1/explain` answers it."""
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
    """Evidence in the words of a text as `/v1/explain` answers it."""
    return Explanation(model=model, label=evidence.label, probability=evidence.probability, words=list(evidence.words))


def describe_model(name: str, model: Predictor, default: bool) -> ModelInfo:
    """A model as `/v1/models` tells it."""
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
    )


def describe_taxonomies(models: Mapping[str, Predictor]) -> list[TaxonomyInfo]:
    """Each taxonomy once; two of one name that differ are both told."""
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
    return [info for _, info in found]
