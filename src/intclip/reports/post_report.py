"""Posts in a report: words beside photos, coloured on demand, and how far the two contradict each other."""

from collections.abc import Iterable
from typing import cast

import numpy as np

from intclip.data.images import ImageInput
from intclip.data.loading import read_for_model
from intclip.errors import ImageError
from intclip.evidence.words import occlusion, part
from intclip.inference.pipeline import Images, Texts, pair_posts
from intclip.inference.post_predictor import PostPredictor
from intclip.inference.prediction import Prediction
from intclip.reports.report import (
    EVIDENCE_LABELS,
    PER_MILLE,
    PhotoEntry,
    packed,
    per_mille,
    thresholds_per_mille,
    thumbnail,
)

_SHOWN = 2
"""Disputed labels that a post tells."""


def post_entries(
    images: Images | None, texts: Texts | None, predictor: PostPredictor, *, batch_size: int
) -> tuple[list[PhotoEntry], list[ImageError]]:
    """Entries of posts, and one error for each that could not be read; arguments as for `PostPredictor.predict`."""
    pairs = list(pair_posts(images, texts))
    predictions = predictor.predict_iter(
        [image for image, _ in pairs], texts=[text for _, text in pairs], batch_size=batch_size, errors="collect"
    )
    entries: list[PhotoEntry] = []
    failures: list[ImageError] = []
    for number, ((image, text), prediction) in enumerate(zip(pairs, predictions, strict=True), start=1):
        if prediction.error is not None:
            failures.append(ImageError(prediction.error))
        else:
            entries.append(_entry(number, image, text, prediction, predictor))
    return entries, failures


def _entry(
    number: int, image: ImageInput | None, text: str | None, prediction: Prediction, predictor: PostPredictor
) -> PhotoEntry:
    strongest = np.argsort(-prediction.probabilities, kind="stable")[:EVIDENCE_LABELS]
    seen = image is not None and "image" in predictor.channels
    entry = PhotoEntry(
        name=f"post {number}",
        path=prediction.source,
        image="",
        size=(0, 0),
        probabilities=per_mille(
            prediction.probabilities, prediction.thresholds, exclusive=predictor.taxonomy.exclusive
        ),
        evidence={},
        box=(0.0, 0.0, 1.0, 1.0),
        thresholds=thresholds_per_mille(prediction.thresholds),
    )
    if image is not None and seen:
        photo = read_for_model(image, predictor.card.preprocessing.size)
        _, regions = predictor.region_falls(photo)
        entry["evidence"] = {int(label): {"fused": packed(regions[label])} for label in strongest}
        entry |= cast("PhotoEntry", thumbnail(photo, prediction.source, predictor.card.preprocessing))
    if text and (parts := part(text)):
        entry["text"] = parts
        if "text" in predictor.channels:
            _, falls = occlusion(parts, predictor.word_scores)
            entry["words"] = {int(label): _percent(falls[:, label]) for label in strongest}
    if prediction.conflict is not None:
        entry["conflict"] = round(prediction.conflict.score * PER_MILLE)
        entry["disputed"] = [
            (name, round(photo_says * 100), round(words_say * 100))
            for name, (photo_says, words_say) in list(prediction.conflict.disputed.items())[:_SHOWN]
        ]
    return entry


def _percent(weights: Iterable[float]) -> list[int]:
    """Weights as percent of the largest, from -100 to 100."""
    values = np.asarray(list(weights), dtype=np.float64)
    most = float(np.abs(values).max())
    return [round(100 * float(value) / most) if most else 0 for value in values]
