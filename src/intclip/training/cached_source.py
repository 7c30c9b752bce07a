"""A split whose frozen features lie on disk: the trunk runs once per photo, and not once per epoch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from intclip.backbones.base import Backbone, FeatureName
from intclip.data.cache_filling import Crew
from intclip.data.cache_key import Dtype, cache_key
from intclip.data.feature_cache import FeatureCache, open_or_build, to_device
from intclip.data.sample import Sample
from intclip.data.transforms import Augment
from intclip.inference.graph_cache import cache_home
from intclip.training.frozen import FrozenFeatures
from intclip.training.plan import Indices
from intclip.training.source import Batch, kept_view

T = TypeVar("T")


class CachedSource:
    """A split read from a feature cache; without augmentation from the plain view, else from its augmented views.

    Args:
        samples: The split.
        cache: Their features.
        device: Where features are wanted.
    """

    def __init__(self, samples: Sequence[Sample], cache: FeatureCache, device: torch.device) -> None:
        self.ids = [sample.id for sample in samples]
        self.targets = np.stack([sample.targets for sample in samples])
        self._cache = cache
        self._device = device
        self._kept_views = max(cache.views)
        self._readable = np.array([index not in cache.errors for index in range(len(samples))])

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """See `FeatureSource.batches`; the epochs take the cached views in turn."""
        chosen = [self._view(epoch, view, views) for view in range(views)]
        return one_ahead(partial(self._batch, indices, chosen) for indices in plan)

    def _batch(self, indices: Indices, views: Sequence[int]) -> Batch:
        rows = indices[self._readable[indices]]
        features = [self._cache.batch(rows, view, self._device) for view in views] if len(rows) else []
        targets = torch.from_numpy(self.targets[rows])
        return Batch(features, to_device(targets, self._device), rows)

    def _view(self, epoch: int | None, view: int, views: int) -> int:
        return 0 if epoch is None or not self._kept_views else kept_view(epoch, view, views, self._kept_views)


def one_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Results of jobs, in order; while the reader is busy with one, a thread works on the next."""
    with ThreadPoolExecutor(1) as pool:
        current: Future[T] | None = None
        for job in jobs:
            following = pool.submit(job)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()


def open_cached_source(
    folder: Path,
    samples: Sequence[Sample],
    backbone: Backbone,
    needs: Sequence[FeatureName],
    frozen: FrozenFeatures,
    *,
    device: torch.device,
    dtype: Dtype,
    augment: Augment | None = None,
    views: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    crew: Crew | None = None,
) -> CachedSource:
    """A cached split, its features computed where they are missing.

    Args:
        folder: Of all caches.
        samples: The split.
        backbone: Frozen, on the device.
        needs: Features that the method asks for, without "pixels". The cache may keep more (see `cached_names`); only
            these are read.
        frozen: Computes `cached_names(needs)` where they are missing.
        device: Where features are wanted.
        dtype: Numbers on disk.
        augment: Makes the views from 1 on.
        views: Augmented views per photo; the plain one is kept as well.
        batch_size: Photos computed at once.
        workers: Threads that decode; 0 takes the usable cores.
        crew: Processes that compute together what is missing.

    Raises:
        StorageError: It does not fit, or cannot be written.
    """
    cache = open_or_build(
        folder,
        samples,
        cache_key(backbone, cached_names(needs), dtype=dtype, precision=frozen.arithmetic),
        frozen.arrays,
        views=range(1 + views),
        augment=augment if views else None,
        batch_size=batch_size,
        workers=workers or None,
        crew=crew,
    )
    wanted = {name: shape for name, shape in cache.shapes.items() if name in needs or name.startswith("stage")}
    return CachedSource(samples, replace(cache, shapes=wanted), device)


def cached_names(needs: Sequence[FeatureName]) -> tuple[FeatureName, ...]:
    """What is cached for a method: with a map also what follows from it cheaply, so that methods share their caches."""
    shared: tuple[FeatureName, ...] = ()
    if "trunk" in needs:
        shared = ("trunk", "regions", "pooled")
    elif "regions" in needs:
        shared = ("regions", "pooled")
    return tuple(dict.fromkeys((*shared, *needs)))


def cache_folder(path: str) -> Path | None:
    """Folder of a recipe's `cache.path`: None for "off", and for "auto" where INTCLIP_CACHE is off."""
    if path == "off":
        return None
    home = cache_home()
    if path == "auto":
        return None if home is None else home / "features"
    return Path(path)
