"""Create the feature sources of a run's splits: from the cache if recipe and method allow it, else from photos."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.base import FeatureName
from intclip.data.cache_shards import CacheFolder
from intclip.data.feature_cache import FeatureCache, cache_key, open_or_build
from intclip.data.masks import Masks
from intclip.data.sample import Sample
from intclip.data.transforms import Augment
from intclip.errors import DatasetError, StorageError
from intclip.files import cache_home
from intclip.methods.base import Method
from intclip.methods.post_text import text_vectors, word_table
from intclip.training.distributed import Processes
from intclip.training.frozen import FrozenFeatures
from intclip.training.plan import Indices
from intclip.training.precision import autocast
from intclip.training.recipe import Recipe
from intclip.training.source import PLAIN, ExtraInputs, FeatureSource, Read, cache_reader, pixel_reader
from intclip.training.text_source import text_reader

DATA_SEED = 2024
"""Seed of the held-out part of `train` and of cached views; not the run's, so all seeds use the same data."""


class SourceMaker:
    """Creates the sources of a run's splits, which share engines.

    Args:
        recipe: The run's recipe.
        method: The method; its backbone is on the device.
        processes: The processes.
        positive_share: Smallest positive target.
        reference: Photos that give the distribution of photo features, for text as training data.
    """

    def __init__(
        self,
        recipe: Recipe,
        method: Method,
        processes: Processes,
        positive_share: float,
        reference: Sequence[Sample] = (),
    ) -> None:
        self._recipe, self._method, self._processes = recipe, method, processes
        self._reference = reference
        self._positive_share = positive_share
        self._engines: dict[tuple[FeatureName, ...], FrozenFeatures] = {}

    def make(self, split: str, samples: Sequence[Sample]) -> FeatureSource:
        """Create the source of a split; only "train" is augmented, and binarised if the recipe has no soft targets.

        Raises:
            StorageError: The cache in the recipe does not fit or cannot be written; with "auto" the photos are read
                instead.
        """
        recipe = self._recipe
        training = split == "train"
        if training and not recipe.data.soft_targets:
            samples = [replace(s, targets=harden(s.targets, self._positive_share)) for s in samples]
        if training and recipe.data.texts_as_images:
            return FeatureSource(samples, self._texts(samples), device=self._processes.device, augmented=True)
        augment = self._augment() if training else None
        return FeatureSource(
            samples,
            self._reader(samples, augment, training=training),
            device=self._processes.device,
            augmented=augment is not None,
            kept_views=recipe.cache.views,
            extra_inputs=self._extra_inputs(samples, augment, training=training),
        )

    def _reader(self, samples: Sequence[Sample], augment: Augment | None, *, training: bool) -> Read:
        recipe, needs = self._recipe, self._method.needs
        folder = cache_folder(recipe.cache.path)
        if folder is not None and "pixels" not in needs and (augment is None or recipe.cache.views):
            try:
                return cache_reader(self._cache(folder, samples, augment, training=training), self._processes.device)
            except StorageError:
                if recipe.cache.path != "auto":
                    raise
        preprocess, engine = self._method.backbone.preprocess, self._engine(needs)
        return pixel_reader(samples, preprocess, engine, augment=augment, workers=recipe.train.workers)

    def _texts(self, samples: Sequence[Sample]) -> Read:
        """Create a source of texts as training data, using reference photos without their labels."""
        read, found = self._reader(self._reference, None, training=False), []
        size = self._recipe.train.eval_batch_size
        plan = np.array_split(np.arange(len(self._reference)), -(-len(self._reference) // size))
        for _, views in read(plan, [None], {}):
            found += [{name: value.float().cpu() for name, value in view.items()} for view in views]
        if not found:
            raise DatasetError("data.texts_as_images: no photo of the training and validation splits can be read")
        photos = {name: torch.cat([part[name] for part in found]) for name in found[0]}
        return text_reader(samples, self._method.backbone, self._method.needs, photos)

    def _augment(self) -> Augment | None:
        recipe = self._recipe
        if recipe.augment is None:
            return None
        # Cached views are part of the data, equal for all seeds; new ones depend on the seed.
        seed = DATA_SEED if recipe.cache.views else recipe.train.seed
        return Augment(recipe.augment, self._method.backbone.preprocess, seed=seed)

    def _cache(
        self, folder: Path, samples: Sequence[Sample], augment: Augment | None, *, training: bool
    ) -> FeatureCache:
        recipe, needs = self._recipe, self._method.needs
        names = cached_names(needs)
        frozen = self._engine(names)
        # Half precision is for training; scored features must equal a predictor's.
        dtype = recipe.cache.dtype if training else "float32"
        cache = open_or_build(
            CacheFolder(folder, workers=recipe.train.workers or None, crew=self._processes),
            samples,
            cache_key(self._method.backbone, names, dtype=dtype, precision=frozen.arithmetic),
            frozen.arrays,
            views=range(1 + (recipe.cache.views if augment is not None else 0)),
            augment=augment,
            batch_size=recipe.train.eval_batch_size,
        )
        wanted = {name: shape for name, shape in cache.shapes.items() if name in needs or name.startswith("stage")}
        return replace(cache, shapes=wanted)

    def _engine(self, names: tuple[FeatureName, ...]) -> FrozenFeatures:
        if names not in self._engines:
            self._engines[names] = FrozenFeatures(
                self._method.backbone,
                names,
                device=self._processes.device,
                engine=self._recipe.backbone.engine,
                precision=lambda: autocast(self._recipe.train.precision, self._processes.device),
            )
        return self._engines[names]

    def _extra_inputs(
        self, samples: Sequence[Sample], augment: Augment | None, *, training: bool
    ) -> ExtraInputs | None:
        """Return additional inputs: masks in training, text in every split that has any."""
        backbone, extra = self._method.backbone, self._method.extra_inputs
        words: dict[str, Callable[[Indices], Tensor]] = {}
        texts = [sample.text for sample in samples]
        if "text" in extra and (vectors := text_vectors(texts, backbone)) is not None:
            words["text"] = lambda indices: vectors[torch.from_numpy(indices)]
        if "words" in extra and (table := word_table(texts, backbone)) is not None:
            words["words"] = table
        masks = self._recipe.data.masks if training and "mask" in extra else None
        if not words and masks is None:
            return None
        plain = Augment(PLAIN, backbone.preprocess)
        return ExtraInputs(samples, words, None if masks is None else Masks(Path(masks)), plain=plain, augment=augment)


def harden(targets: npt.NDArray[np.float32], positive_share: float) -> npt.NDArray[np.float32]:
    """Binarise targets; NaN stays NaN."""
    return np.where(np.isnan(targets), targets, targets >= positive_share).astype(np.float32)


def cached_names(needs: Sequence[FeatureName]) -> tuple[FeatureName, ...]:
    """Return the features to cache: with a map also cheap derived ones, so that methods share caches."""
    shared: tuple[FeatureName, ...] = ()
    if "trunk" in needs:
        shared = ("trunk", "regions", "pooled")
    elif "regions" in needs:
        shared = ("regions", "pooled")
    return tuple(dict.fromkeys((*shared, *needs)))


def cache_folder(path: str) -> Path | None:
    """Return the folder of a recipe's `cache.path`: None for "off", and for "auto" if INTCLIP_CACHE is off."""
    if path == "off":
        return None
    home = cache_home()
    if path == "auto":
        return None if home is None else home / "features"
    return Path(path)
