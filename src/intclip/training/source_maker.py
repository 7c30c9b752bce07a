"""Which feature source a split gets: the cache where recipe and method allow it, else the photos."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from intclip.backbones.base import FeatureName
from intclip.data.masks import Masks
from intclip.data.sample import Sample
from intclip.data.transforms import Augment
from intclip.errors import StorageError
from intclip.methods.base import Method
from intclip.posts.beside import text_vectors, word_table
from intclip.training.beside_source import PLAIN, BesideSource
from intclip.training.cached_source import CachedSource, cache_folder, cached_names, open_cached_source
from intclip.training.distributed import Processes
from intclip.training.frozen import FrozenFeatures
from intclip.training.recipe import Recipe
from intclip.training.source import FeatureSource, PixelSource

DATA_SEED = 2024
"""Of the validation photos taken from `train` and of kept views; not the run's, so that all seeds see the same data."""


class SourceMaker:
    """Makes the sources of a run's splits; they share their engines.

    Args:
        recipe: The run.
        method: Says what it needs; its backbone is on the device.
        processes: Who takes part.
        positive_share: A target at or above it is a yes.
    """

    def __init__(self, recipe: Recipe, method: Method, processes: Processes, positive_share: float) -> None:
        self._recipe, self._method, self._processes = recipe, method, processes
        self._positive_share = positive_share
        self._engines: dict[tuple[FeatureName, ...], FrozenFeatures] = {}

    def make(self, split: str, samples: Sequence[Sample]) -> FeatureSource:
        """The source of a split; only "train" is augmented, and hardened where the recipe wants no soft targets.

        Raises:
            StorageError: The cache that the recipe names does not fit or cannot be written; with "auto" the photos are
                read instead.
        """
        recipe = self._recipe
        training = split == "train"
        if training and not recipe.data.soft_targets:
            samples = [replace(s, targets=harden(s.targets, self._positive_share)) for s in samples]
        augment = self._augment() if training else None
        source = self._photos(samples, augment, training=training)
        return self._with_beside(source, samples, augment, training=training) if self._method.beside else source

    def _with_beside(
        self, source: FeatureSource, samples: Sequence[Sample], augment: Augment | None, *, training: bool
    ) -> FeatureSource:
        """What the method reads beside the photos: masks in training, words in every split that has any."""
        data, preprocess, beside = self._recipe.data, self._method.backbone.preprocess, self._method.beside
        texts = [sample.text for sample in samples]
        return BesideSource(
            source,
            samples,
            Augment(PLAIN, preprocess),
            augment=augment,
            kept_views=self._recipe.cache.views,
            masks=Masks(Path(data.masks)) if training and data.masks and "mask" in beside else None,
            text=text_vectors(texts, self._method.backbone) if "text" in beside else None,
            words=word_table(texts, self._method.backbone) if "words" in beside else None,
        )

    def _photos(self, samples: Sequence[Sample], augment: Augment | None, *, training: bool) -> FeatureSource:
        recipe, needs = self._recipe, self._method.needs
        folder = cache_folder(recipe.cache.path)
        if folder is not None and "pixels" not in needs and (augment is None or recipe.cache.views):
            try:
                return self._cached(folder, samples, augment, training=training)
            except StorageError:
                if recipe.cache.path != "auto":
                    raise
        return PixelSource(
            samples,
            self._method.backbone.preprocess,
            self._engine(needs),
            augment=augment,
            kept_views=recipe.cache.views,
            workers=recipe.train.workers,
            device=self._processes.device,
        )

    def _augment(self) -> Augment | None:
        recipe = self._recipe
        if recipe.augment is None:
            return None
        # Kept views are part of the data, the same for every seed of a run; new ones follow the seed.
        seed = DATA_SEED if recipe.cache.views else recipe.train.seed
        return Augment(recipe.augment, self._method.backbone.preprocess, seed=seed)

    def _cached(
        self, folder: Path, samples: Sequence[Sample], augment: Augment | None, *, training: bool
    ) -> CachedSource:
        recipe, needs = self._recipe, self._method.needs
        return open_cached_source(
            folder,
            samples,
            self._method.backbone,
            needs,
            self._engine(cached_names(needs)),
            device=self._processes.device,
            # Half precision is for the bulk; what is scored stays what a predictor computes.
            dtype=recipe.cache.dtype if training else "float32",
            augment=augment,
            views=recipe.cache.views if augment is not None else 0,
            batch_size=recipe.train.eval_batch_size,
            workers=recipe.train.workers,
            crew=self._processes,
        )

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


def harden(targets: npt.NDArray[np.float32], positive_share: float) -> npt.NDArray[np.float32]:
    """Targets as 0 and 1; NaN stays NaN."""
    return np.where(np.isnan(targets), targets, targets >= positive_share).astype(np.float32)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set torch's float32 matmul precision ("highest", "high" or "medium"), and put back what it was."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The autocast context of a recipe's precision on a device; "fp16" is for a GPU, elsewhere it means fp32."""
    if precision == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "fp32"
    if precision == "fp32" or (precision == "fp16" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
