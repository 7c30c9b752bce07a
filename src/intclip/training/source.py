"""Sources of batches: photos through the frozen backbone, or cached features.

`plan.py` determines the order of photos, and a source only fetches them, so the order does not
depend on the cache, on threads, or on the number of processes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.base import Features
from intclip.backbones.preprocess import Preprocess
from intclip.data.feature_cache import FeatureCache, to_device
from intclip.data.loading import pixel_batches
from intclip.data.masks import Masks
from intclip.data.sample import Sample
from intclip.data.transforms import Augment, AugmentConfig
from intclip.training.plan import Indices

T = TypeVar("T")
View = tuple[int, int] | None
"""Epoch and number of an augmented view; None is the plain photo. Cached views have epoch 0."""
Photos = tuple[Indices, list[Features]]
"""Readable photos of a batch, and their features in each view; no views if none could be read."""
Read = Callable[[Sequence[Indices], Sequence[View], dict[int, str]], Iterator[Photos]]
"""Reads batches of photos in some views, and adds unreadable ones with their errors to the dict."""
ReadExtraInputs = Callable[[Indices, View], dict[str, Tensor]]
"""Returns additional features of a view, on the CPU, for some photos."""
PLAIN = AugmentConfig(crop="eval", flip=0, cutout=0, operations=0)
"""Plain photos, as in evaluation."""


@dataclass
class Batch:
    """Some photos of a split, on the device.

    Attributes:
        views: One entry per augmented view, each the features of all photos.
        targets: (B, K) float32; NaN where unknown.
        indices: Their positions in the split; unreadable photos are skipped.
    """

    views: list[Features]
    targets: Tensor
    indices: Indices


class FeatureSource:
    """One split of a dataset as features.

    Args:
        samples: The split.
        read: `pixel_reader` or `cache_reader`.
        device: Device of the features.
        augmented: Whether epochs use augmented views instead of plain photos.
        kept_views: Number of views per photo through which epochs cycle; 0 draws new ones in every epoch.
        extra_inputs: Returns additional inputs of the method.

    Attributes:
        ids: Sample ids, in order of the split.
        targets: (N, K) float32.
        errors: Position to error of unreadable photos found so far.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        read: Read,
        *,
        device: torch.device | None = None,
        augmented: bool = False,
        kept_views: int = 0,
        extra_inputs: ReadExtraInputs | None = None,
    ) -> None:
        self.ids = [sample.id for sample in samples]
        self.targets: npt.NDArray[np.float32] = np.stack([sample.targets for sample in samples])
        self.errors: dict[int, str] = {}
        self._read, self._extra_inputs = read, extra_inputs
        self._device = device or torch.device("cpu")
        self._augmented, self._kept_views = augmented, kept_views

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """Yield one batch per entry of `plan`, in order; without views if none of its photos could be read.

        Args:
            plan: Positions in the split, batch by batch; none empty.
            epoch: Epoch (from 1) of the augmentation; None for plain photos.
            views: Augmented views per photo.
        """
        chosen = [self._view(epoch, number, views) for number in range(views)]
        for rows, features in self._read(plan, chosen, self.errors):
            if self._extra_inputs is not None:
                features = [
                    part | {name: value.to(self._device) for name, value in self._extra_inputs(rows, view).items()}
                    for part, view in zip(features, chosen, strict=False)
                ]
            yield Batch(features, to_device(torch.from_numpy(self.targets[rows]), self._device), rows)

    def _view(self, epoch: int | None, number: int, views: int) -> View:
        if epoch is None or not self._augmented:
            return None
        if self._kept_views:
            return 0, ((epoch - 1) * views + number) % self._kept_views + 1
        return epoch, number


def pixel_reader(
    samples: Sequence[Sample],
    preprocess: Preprocess,
    frozen: Callable[[Tensor], Features],
    *,
    augment: Augment | None = None,
    workers: int = 0,
) -> Read:
    """Read photos at every pass: decode, augment, preprocess, frozen backbone.

    Args:
        samples: The split.
        preprocess: Photo to pixels.
        frozen: Pixels to the method's features.
        augment: Makes augmented views.
        workers: Decoding threads; 0 for the number of usable cores.
    """
    load = partial(pixel_batches, samples, preprocess, workers=workers or None)

    def read(plan: Sequence[Indices], views: Sequence[View], errors: dict[int, str]) -> Iterator[Photos]:
        for size, run in groupby(plan, key=len):
            indices = np.concatenate(list(run))
            streams = []
            for view in views:
                made = partial(augment, epoch=view[0], view=view[1]) if augment and view else None
                streams.append(load(size, indices=indices, augment=made))
            for parts in zip(*streams, strict=True):
                errors.update({index: str(error) for part in parts for index, error in part.errors})
                rows = parts[0].indices
                yield rows, [frozen(part.pixels) for part in parts] if len(rows) else []

    return read


def cache_reader(cache: FeatureCache, device: torch.device) -> Read:
    """Read cached features, one batch ahead; views are the plain photo (0) and the cached ones."""

    def batch(indices: Indices, views: Sequence[View]) -> Photos:
        rows = indices[[int(index) not in cache.errors for index in indices]]
        numbers = [0 if view is None else view[1] for view in views]
        return rows, [cache.batch(rows, number, device) for number in numbers] if len(rows) else []

    def read(plan: Sequence[Indices], views: Sequence[View], errors: dict[int, str]) -> Iterator[Photos]:
        errors.update(cache.errors)
        return one_ahead(partial(batch, indices, views) for indices in plan)

    return read


class ExtraInputs:
    """Additional inputs of a method: text, and object masks transformed like each view.

    Args:
        samples: The split.
        words: Name of an entry ("text", "words") to a function that returns it for some photos.
        masks: Masks, if the method uses them.
        plain: Transforms a mask like a plain photo.
        augment: Augmentation of the training views; None for plain photos.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        words: dict[str, Callable[[Indices], Tensor]],
        masks: Masks | None,
        *,
        plain: Augment,
        augment: Augment | None,
    ) -> None:
        self._ids = [sample.id for sample in samples]
        self._words, self._masks = words, masks
        self._plain, self._augment = plain, augment

    def __call__(self, indices: Indices, view: View) -> dict[str, Tensor]:
        """See `ReadExtraInputs`."""
        found = {name: give(indices) for name, give in self._words.items()}
        if self._masks is not None:
            rows = [self._mask(self._masks, int(index), view) for index in indices]
            found["mask"] = torch.from_numpy(np.stack(rows)[:, None])
        return found

    def _mask(self, masks: Masks, index: int, view: View) -> npt.NDArray[np.float32]:
        augment = self._plain if view is None or self._augment is None else self._augment
        mask = masks(self._ids[index])
        if mask is None:
            return np.full((augment.preprocess.size,) * 2, np.nan, dtype=np.float32)
        epoch, number = view or (0, 0)
        laid_out = augment.layout(mask, epoch=epoch, index=index, view=number)
        return np.asarray(laid_out, dtype=np.float32) / np.float32(255)


@dataclass(frozen=True)
class PlainPasses(Iterable[tuple[Features, Tensor]]):
    """Iterable over a split's plain features and targets in order, for `Method.prepare`.

    Attributes:
        source: The training split.
        batch_size: Photos per batch.
    """

    source: FeatureSource
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Features, Tensor]]:
        """Iterate over the whole split."""
        for batch in self.source.batches(in_order(len(self.source.ids), self.batch_size)):
            if batch.views:
                yield batch.views[0], batch.targets


def in_order(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Indices]:
    """Return a plan over 0 … count-1: this process's contiguous share, in batches."""
    mine = np.array_split(np.arange(count, dtype=np.int64), world)[rank]
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]


def one_ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield results of jobs in order; a thread computes the next one in the background."""
    with ThreadPoolExecutor(1) as pool:
        current: Future[T] | None = None
        for job in jobs:
            following = pool.submit(job)
            if current is not None:
                yield current.result()
            current = following
        if current is not None:
            yield current.result()
