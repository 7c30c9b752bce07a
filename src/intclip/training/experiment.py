"""From a recipe to its parts: splits, backbone, method, and one feature source per split."""

import contextlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch

from intclip.backbones import load_backbone
from intclip.backbones.base import Backbone
from intclip.backbones.preprocess import Preprocess
from intclip.data.registry import load_dataset
from intclip.data.sample import Dataset, Sample, check_labelled
from intclip.data.splitting import hold_out
from intclip.errors import DatasetError
from intclip.labels import load_taxonomy
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method
from intclip.methods.registry import build_method
from intclip.metrics import positives
from intclip.training.distributed import Processes
from intclip.training.recipe import BackboneSection, DataSection, Recipe
from intclip.training.source import FeatureSource
from intclip.training.source_maker import DATA_SEED, SourceMaker

_log = logging.getLogger(__name__)
REFERENCE_PHOTOS = 1000
"""Number of photos that give the distribution of photo features, for text as training data."""


@dataclass
class Experiment:
    """The parts of a run.

    Attributes:
        dataset: Dataset with the run's splits as "train", "val" and "test".
        method: On the device, untrained.
        sources: Split to its features.
    """

    dataset: Dataset
    method: Method
    sources: dict[str, FeatureSource]


def open_inputs(
    recipe: Recipe, *, dataset: Dataset | None = None, backbone: Backbone | None = None
) -> tuple[Dataset, Backbone]:
    """Load a run's data and backbone by its recipe.

    Args:
        recipe: The run.
        dataset: Use this one instead of the recipe's `data.name`.
        backbone: Use this one instead of the recipe's `backbone.name`.

    Raises:
        DatasetError: The dataset or a split is missing or empty, or no label can be learned from it.
        CheckpointError: The backbone's weights are missing or wrong.
    """
    data = recipe.data
    if dataset is None:
        dataset = load_dataset(data.name, data.root, **data.options)
    # A folder of photos may be single-label with any taxonomy; a model knows it only from its taxonomy.
    taxonomy = replace(choose_taxonomy(dataset, data.taxonomy), exclusive=dataset.task == "singlelabel")
    share = data.positive_share if data.positive_share is not None else dataset.positive_share
    splits = choose_splits(dataset, data)
    dataset = replace(dataset, splits=splits, taxonomy=taxonomy, positive_share=share)
    check_learnable(dataset)
    return dataset, open_backbone(recipe.backbone, backbone)


def build_experiment(recipe: Recipe, processes: Processes, dataset: Dataset, backbone: Backbone) -> Experiment:
    """Build the method and a feature source for every split.

    Args:
        recipe: The run.
        processes: Gives the device.
        dataset: From `open_inputs`.
        backbone: From `open_inputs`.

    Raises:
        StorageError: The cache in the recipe does not fit or cannot be written.
    """
    backbone = backbone.to(processes.device)
    seed_everything(recipe.train.seed)
    method = build_method(recipe.method.name, backbone, dataset.taxonomy, recipe.method.options).to(processes.device)
    photos = [s for split in ("train", "val") for s in dataset.splits.get(split, []) if s.image is not None]
    maker = SourceMaker(recipe, method, processes, dataset.positive_share, photos[:REFERENCE_PHOTOS])
    sources = {split: maker.make(split, samples) for split, samples in dataset.splits.items()}
    return Experiment(dataset, method, sources)


def check_learnable(dataset: Dataset) -> None:
    """Warn about labels that every or no training photo has, which cannot be learned.

    Raises:
        DatasetError: This applies to every label.
    """
    targets = dataset.targets("train")
    positive = positives(targets, dataset.positive_share)
    has_yes, has_no = positive.any(axis=0), (~positive & ~np.isnan(targets)).any(axis=0)
    names = np.array(dataset.taxonomy.names, dtype=object)
    if not (has_yes & has_no).any():
        lacks = "a photo without it" if has_yes.any() else "a photo that has it"
        raise DatasetError(
            f"{dataset.name}: nothing can be learned from the {len(targets)} training photos, because "
            f"no label has both positive and negative photos (label {names[0]!r} lacks {lacks}); add such photos, or "
            "check data.positive_share"
        )
    for missing, what in ((~has_yes, "no positive"), (has_yes & ~has_no, "no negative")):
        if missing.any():
            _log.warning(
                "%s training photo for %d of %d labels, which cannot be learned: %s",
                what.capitalize(), missing.sum(), len(names), ", ".join(map(repr, names[missing])),
            )  # fmt: skip


def open_backbone(section: BackboneSection, backbone: Backbone | None = None) -> Backbone:
    """Load the backbone of a recipe with the recipe's preprocessing."""
    if backbone is None:
        backbone = load_backbone(
            section.name,
            checkpoint=section.checkpoint,
            split=section.split,
            activation=section.activation,
            regions=section.regions,
        )
    backbone.take(adapt_preprocess(backbone.preprocess, section))
    return backbone


def adapt_preprocess(preprocess: Preprocess, section: BackboneSection) -> Preprocess:
    """Return a backbone's preprocessing with the recipe's changes."""
    changes: dict[str, Any] = {}
    if not section.normalize:
        changes |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if section.size is not None:
        changes["size"] = section.size
    if section.crop is not None:
        changes["crop"] = section.crop
    if section.interpolation is not None:
        changes["interpolation"] = section.interpolation
    return preprocess.model_copy(update=changes)


def choose_taxonomy(dataset: Dataset, name: str | None) -> Taxonomy:
    """Return the dataset's taxonomy, or another one with the same classes but other sentences or levels.

    Raises:
        DatasetError: The other one lacks a class, or has another order.
        TaxonomyError: The taxonomy is unknown.
    """
    if name is None:
        return dataset.taxonomy
    taxonomy = load_taxonomy(name).only(dataset.taxonomy.names)
    if taxonomy.names != dataset.taxonomy.names:
        raise DatasetError(
            f"data.taxonomy {name} does not have the {len(dataset.taxonomy)} classes of {dataset.name} in their order; "
            "write sentences for the dataset's own taxonomy with `intclip labels integrate`"
        )
    return taxonomy


def choose_splits(dataset: Dataset, data: DataSection) -> dict[str, list[Sample]]:
    """Return the splits "train", "val" and optionally "test" of a dataset by a recipe.

    Raises:
        DatasetError: A split is used twice, missing, empty, without photos or without known labels, or there are too
            few photos to hold some out.
    """
    for first, second in combinations(("train", "val", "test"), 2):
        if (twice := getattr(data, first)) is not None and twice == getattr(data, second):
            raise DatasetError(
                f"data.{first} and data.{second} are both {twice!r}: a split cannot be used both for training or "
                "tuning and for scoring; choose another one, or null for data.val (part of train is held out) or "
                "data.test (none)"
            )
    known = ", ".join(sorted(dataset.splits))
    for wanted in (data.train, *([data.test] if data.test else [])):
        if not dataset.splits.get(wanted):
            raise DatasetError(
                f"dataset {dataset.name} has no photos in split {wanted!r}; its splits: {known}; "
                "choose another one with data.train or data.test (null for none)"
            )
    train = list(dataset.splits[data.train])
    val = list(dataset.splits.get(data.val, [])) if data.val else []
    if not val:
        parts = hold_out(train, {"train": 1 - data.holdout, "val": data.holdout}, DATA_SEED)
        train, val = parts["train"], parts["val"]
        if data.val:
            _log.info(
                "%s has no split %r (its splits: %s): %d samples of %s are held out; choose another one with data.val",
                dataset.name, data.val, known, len(val), data.train,
            )  # fmt: skip
    splits = {"train": train, "val": val}
    if data.test:
        splits["test"] = list(dataset.splits[data.test])
    for name, samples in splits.items():
        texts = data.texts_as_images and name == "train"
        usable = _with_texts(samples, dataset.name) if texts else _with_photos(samples, dataset.name, name)
        splits[name] = usable[: data.limit]
    for name, samples in splits.items():
        check_labelled(samples, dataset.name, name)
    return splits


def _with_texts(samples: list[Sample], dataset: str) -> list[Sample]:
    found = [sample for sample in samples if (sample.text or "").strip()]
    if samples and not found:
        raise DatasetError(f"data.texts_as_images: none of the {len(samples)} training samples of {dataset} has a text")
    return found


def _with_photos(samples: list[Sample], dataset: str, split: str) -> list[Sample]:
    found = [sample for sample in samples if sample.image is not None]
    if samples and not found:
        raise DatasetError(
            f"none of the {len(samples)} samples of {dataset}, {split}, has a photo; get the photos first"
        )
    return found


def seed_everything(*parts: int) -> None:
    """Seed torch, NumPy and random by a hash of these numbers, such as (seed, epoch, step, rank)."""
    seed = int(np.random.SeedSequence(parts).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Use deterministic kernels on a CPU, where they cost little; restore the caller's random state."""
    before = torch.get_deterministic_debug_mode()
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        if device.type == "cpu":
            torch.set_deterministic_debug_mode("warn")
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)
            random.setstate(states[0])
            np.random.set_state(states[1])
