"""`intclip fit`: from a table of labelled posts to a bundle, with figures that were held out."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from intclip.data.loading import read_for_model
from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError
from intclip.inference.post_bundle import PostBundle, save_posts
from intclip.posts.crossval import figures, nested
from intclip.posts.encoders import (
    DEFAULT_TEXT_ENCODER,
    Raw,
    class_sentences,
    encode_classes,
    encode_photos,
    encode_texts,
    text_encoder,
    tower_encoder,
)
from intclip.posts.model import fit_posts

if TYPE_CHECKING:
    from PIL import Image

    from intclip.backbones.base import Backbone

LEAST_POSTS = 20
_log = logging.getLogger(__name__)
Report = Callable[[str, int, int], None]
"""Told the stage, how much is done and how much there is."""


@dataclass(frozen=True)
class Fitted:
    """What `fit_dataset` did.

    Attributes:
        bundle: The model.
        posts: Posts it was fitted on.
        metrics: Mode to metric to {"value", "low", "high"}, from nested cross-validation; empty without folds.
        seconds: Stage ("encode", "cross-validate", "fit") to the time it took.
    """

    bundle: PostBundle
    posts: int
    metrics: dict[str, Any]
    seconds: dict[str, float]


def fit_dataset(
    dataset: Dataset,
    *,
    splits: Sequence[str] = ("train",),
    backbone: str = "lite",
    encoder: str = DEFAULT_TEXT_ENCODER,
    channels: Sequence[str] = ("text", "image"),
    folds: int = 5,
    seed: int = 0,
    head: str | None = None,
    report: Report | None = None,
) -> Fitted:
    """Fit a model of posts.

    Posts that lack a channel which others have are left out of the fit (not of prediction); posts without known labels
    as well.

    Args:
        dataset: Photos, texts, or both, with labels.
        splits: Which splits to fit on.
        backbone: Of the photos.
        encoder: Of the words; see `text_encoder`.
        channels: Which channels to read; those that no post has are dropped.
        folds: Of the nested cross-validation; 0 leaves it out.
        seed: Of the folds.
        head: Take this head in place of the best one.
        report: See `Report`.

    Raises:
        DatasetError: A split is missing, or there are too few posts.
    """
    from intclip.backbones import load_backbone

    samples, used = usable_samples(dataset, splits, channels)
    targets = (np.stack([sample.targets for sample in samples]) >= dataset.positive_share).astype(np.float64)
    exclusive = dataset.task == "singlelabel"
    # A table of posts may have one label a post under any taxonomy; what a prediction holds is told by the taxonomy.
    dataset = replace(dataset, taxonomy=replace(dataset.taxonomy, exclusive=exclusive))
    clock = time.perf_counter()
    tower = load_backbone(backbone)
    sentences = class_sentences(dataset.taxonomy)
    raw = encode_samples(samples, used, tower, encoder, sentences, report)
    seconds = {"encode": time.perf_counter() - clock}
    metrics: dict[str, Any] = {}
    if folds:
        clock = time.perf_counter()
        tell = None if report is None else lambda done, total: report("cross-validating", done, total)
        held_out = nested(
            raw, targets, dataset.taxonomy, exclusive=exclusive, folds=folds, seed=seed, head=head, report=tell
        )
        metrics = {
            mode: figures(found, held_out.decisions[mode], targets, exclusive=exclusive)
            for mode, found in held_out.probabilities.items()
        }
        seconds["cross-validate"] = time.perf_counter() - clock
    clock = time.perf_counter()
    model = fit_posts(raw, targets, dataset.taxonomy, exclusive=exclusive, seed=seed, head=head)
    seconds["fit"] = time.perf_counter() - clock
    return Fitted(PostBundle(model, backbone, encoder, sentences, metrics or None), len(samples), metrics, seconds)


def write_fitted(fitted: Fitted, out: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
    """Write the bundle; see `save_posts`."""
    return save_posts(out, fitted.bundle, overwrite=overwrite)


def usable_samples(dataset: Dataset, splits: Sequence[str], channels: Sequence[str]) -> tuple[list[Sample], list[str]]:
    """Samples with all labels known and every channel that any sample has, and those channels' names.

    Logs how many others there are: both channels are learned from the same posts.
    """
    if missing := [split for split in splits if split not in dataset.splits]:
        raise DatasetError(f"{dataset.name} has no split {missing[0]!r}; it has: {', '.join(dataset.splits)}")
    labelled = [s for split in splits for s in dataset.splits[split] if not np.isnan(s.targets).any()]
    has = {
        "text": lambda sample: bool(sample.text and sample.text.strip()),
        "image": lambda sample: (
            sample.image is not None and (not isinstance(sample.image, Path) or sample.image.exists())
        ),
    }
    used = [name for name in channels if any(map(has[name], labelled))]
    samples = [sample for sample in labelled if used and all(has[name](sample) for name in used)]
    if len(samples) < LEAST_POSTS:
        raise DatasetError(
            f"{dataset.name} has {len(samples)} posts with all labels known and {' and '.join(channels)}; "
            f"{LEAST_POSTS} are the least to learn from: label more, or fit one channel (--channel)"
        )
    total = sum(len(dataset.splits[split]) for split in splits)
    if len(samples) < total:
        lacking = " or ".join([*used, "labels"])
        _log.info("%s: %d of %d posts lack %s and are left out", dataset.name, total - len(samples), total, lacking)
    return samples, used


def encode_samples(
    samples: Sequence[Sample],
    used: Sequence[str],
    tower: "Backbone",
    encoder: str,
    sentences: list[list[str]],
    report: Report | None = None,
) -> dict[str, Raw]:
    """Raw channels of samples that have them all."""
    raw: dict[str, Raw] = {}
    if "text" in used:
        if report is not None:
            report("reading words", 0, len(samples))
        encode = text_encoder(encoder, tower)
        classes = encode_classes(sentences, encode)
        raw["text"] = encode_texts([sample.text or "" for sample in samples], encode, classes)
    if "image" in used:
        tell = None if report is None else lambda done, total: report("reading photos", done, total)
        photos = _photos(samples, tower.image_size)
        classes = encode_classes(sentences, tower_encoder(tower))
        raw["image"] = encode_photos(photos, tower, classes, report=tell, total=len(samples))
    return raw


def _photos(samples: Sequence[Sample], side: int) -> "Iterator[Image.Image]":
    for sample in samples:
        assert sample.image is not None
        yield read_for_model(sample.image, side)
