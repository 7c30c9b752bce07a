"""Ranking of photos and descriptions by a taxonomy's texts, for `intclip labels score`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from intclip.backbones.base import Backbone
from intclip.data.loading import pixel_batches
from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError
from intclip.labels.score import FormScore, score_forms
from intclip.labels.taxonomy import Taxonomy
from intclip.metrics import positives

BATCH = 32
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class SentenceScores:
    """Scores of several forms on the same items.

    Attributes:
        forms: One score per form.
        items: Number of ranked items.
        left_out: Number of items without the requested text or photo, or with an unreadable photo.
    """

    forms: list[FormScore]
    items: int
    left_out: int


def score_texts(
    taxonomy: Taxonomy,
    texts: Sequence[str],
    targets: npt.NDArray[np.float32],
    backbone: Backbone,
    forms: Sequence[str],
    *,
    on_progress: Progress | None = None,
) -> SentenceScores:
    """Rank descriptions by their cosine with a taxonomy's texts, both embedded by the backbone's text tower.

    Args:
        taxonomy: K classes.
        texts: N descriptions; those over the tower's context are averaged over parts.
        targets: (N, K), 0/1; NaN where unknown.
        backbone: Backbone of the text tower.
        forms: From `intclip.labels.FORMS`.
        on_progress: Called with (done, total) texts.
    """
    items = _embed(backbone, texts, on_progress)
    scores = score_forms(taxonomy, items, targets, partial(_embed, backbone), forms)
    return SentenceScores(scores, len(texts), 0)


def score_dataset(
    taxonomy: Taxonomy,
    dataset: Dataset,
    split: str,
    backbone: Backbone,
    forms: Sequence[str],
    *,
    photos: bool,
    on_progress: Progress | None = None,
) -> SentenceScores:
    """Rank a split's photos, or their texts, by their cosine with a taxonomy's texts.

    Args:
        taxonomy: The dataset's classes, possibly with other texts or in another order.
        dataset: The dataset.
        split: Name of one of its splits.
        backbone: Both towers for photos, the text tower for texts.
        forms: From `intclip.labels.FORMS`.
        photos: Rank photos; otherwise texts.
        on_progress: Called with (done, total) items.

    Raises:
        DatasetError: The split is missing, or no sample has a photo or text to rank.
        TaxonomyError: A class is not among the dataset's labels.
    """
    if split not in dataset.splits:
        raise DatasetError(f"{dataset.name} has no split {split!r}; choose one of: {', '.join(dataset.splits)}")
    samples = dataset.splits[split]
    what = "photos" if photos else "texts"
    there = [s for s in samples if (s.image is not None if photos else bool(s.text and s.text.strip()))]
    if not there:
        raise DatasetError(
            f"{dataset.name} has no {what} in split {split}; score its {'texts' if photos else 'photos'}"
        )
    order = [dataset.taxonomy.index(name) for name in taxonomy.names]
    if photos:
        items, readable = embed_photos(backbone, there, on_progress=on_progress)
        there = [there[index] for index in readable]
        if not there:
            raise DatasetError(f"none of the photos of {dataset.name} ({split}) can be read; run `intclip data check`")
    else:
        items = _embed(backbone, [str(sample.text) for sample in there], on_progress)
    shares = np.stack([sample.targets for sample in there])[:, order]
    targets = np.where(np.isnan(shares), np.nan, positives(shares, dataset.positive_share)).astype(np.float32)
    scores = score_forms(taxonomy, items, targets, partial(_embed, backbone), forms)
    return SentenceScores(scores, len(there), len(samples) - len(there))


def _embed(backbone: Backbone, texts: Sequence[str], on_progress: Progress | None = None) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = backbone.embed_texts(texts, long="average", on_progress=on_progress).cpu().numpy()
    return found


def embed_photos(
    backbone: Backbone, samples: Sequence[Sample], *, on_progress: Progress | None = None
) -> tuple[npt.NDArray[np.float32], list[int]]:
    """Compute image embeddings (M, D) of readable samples, and their indices."""
    features: dict[int, npt.NDArray[np.float32]] = {}
    done = 0
    for batch in pixel_batches(samples, backbone.preprocess, BATCH):
        if len(batch.indices):
            with torch.inference_mode():
                rows = backbone.encode_image(batch.pixels).float().cpu().numpy()
            features.update(zip(map(int, batch.indices), rows, strict=True))
        done += len(batch.indices) + len(batch.errors)
        if on_progress is not None:
            on_progress(done, len(samples))
    readable = sorted(features)
    return np.stack([features[index] for index in readable]) if readable else np.empty((0, 1), np.float32), readable
