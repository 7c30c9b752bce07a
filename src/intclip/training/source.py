"""Where batches come from: photos through the frozen backbone, or features that a cache holds.

The loop says which photos come next (`plan.py`); a source only fetches them. So the order of a run does not depend on
where its features come from, on threads, or on the number of processes.
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
"""Epoch and number of an augmented view; None is the photo as it is. Views that are kept have epoch 0."""
Photos = tuple[Indices, list[Features]]
"""The photos of a batch that could be read, and their features in each view; no views where none could be read."""
Read = Callable[[Sequence[Indices], Sequence[View], dict[int, str]], Iterator[Photos]]
"""Reads batches of photos in some views, and adds to the dict those that it could not read, with the reason."""
BesideView = Callable[[Indices, View], dict[str, Tensor]]
"""Further entries of a view's features, on the CPU, for some photos."""
PLAIN = AugmentConfig(crop="eval", flip=0, cutout=0, operations=0)
"""No augmentation: what evaluation sees."""


@dataclass
class Batch:
    """Some photos of a split, on the device.

    Attributes:
        views: One entry per augmented view, each the features of all photos.
        targets: (B, K) float32; NaN where unknown.
        indices: Their positions in the split; photos that could not be read are left out of the whole batch.
    """

    views: list[Features]
    targets: Tensor
    indices: Indices


class FeatureSource:
    """One split of a dataset as features.

    Args:
        samples: The split.
        read: `pixel_reader` or `cache_reader`.
        device: Where features are wanted.
        augmented: Whether an epoch sees augmented views; else it sees the photos as they are.
        kept_views: The epochs take this many views of each photo in turn; 0 makes new ones in every epoch.
        beside: Gives what the method reads beside the photos.

    Attributes:
        ids: Sample ids, in order of the split.
        targets: (N, K) float32.
        errors: Position to the reason, of the photos that were found unreadable so far.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        read: Read,
        *,
        device: torch.device | None = None,
        augmented: bool = False,
        kept_views: int = 0,
        beside: BesideView | None = None,
    ) -> None:
        self.ids = [sample.id for sample in samples]
        self.targets: npt.NDArray[np.float32] = np.stack([sample.targets for sample in samples])
        self.errors: dict[int, str] = {}
        self._read, self._beside = read, beside
        self._device = device or torch.device("cpu")
        self._augmented, self._kept_views = augmented, kept_views

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """One batch for every entry of `plan`, in order; without views where none of its photos could be read.

        Args:
            plan: Positions in the split, batch by batch; none empty.
            epoch: Epoch (from 1) whose augmentation is wanted; None for the plain photos.
            views: Augmented views per photo.
        """
        chosen = [self._view(epoch, number, views) for number in range(views)]
        for rows, features in self._read(plan, chosen, self.errors):
            if self._beside is not None:
                features = [
                    part | {name: value.to(self._device) for name, value in self._beside(rows, view).items()}
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
        frozen: Pixels to the features that the method asks for.
        augment: Makes the views that are not None.
        workers: Threads that decode; 0 takes the usable cores.
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
    """Read cached features, one batch ahead of the reader; its views are the plain photo (0) and the kept ones."""

    def batch(indices: Indices, views: Sequence[View]) -> Photos:
        rows = indices[[int(index) not in cache.errors for index in indices]]
        numbers = [0 if view is None else view[1] for view in views]
        return rows, [cache.batch(rows, number, device) for number in numbers] if len(rows) else []

    def read(plan: Sequence[Indices], views: Sequence[View], errors: dict[int, str]) -> Iterator[Photos]:
        errors.update(cache.errors)
        return one_ahead(partial(batch, indices, views) for indices in plan)

    return read


class Beside:
    """What a method reads beside the photos: words, and object masks laid out as each view is.

    Args:
        samples: The split.
        words: Name of an entry ("text", "words") to a function that gives it for some photos.
        masks: Where the method reads them.
        plain: Lays a mask out as a photo that is not augmented.
        augment: Made the training views; None for plain photos.
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
        """See `BesideView`."""
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
    """A split's plain features and targets in order, as often as it is iterated: what `Method.prepare` sees.

    Attributes:
        source: The training split.
        batch_size: Photos of one batch.
    """

    source: FeatureSource
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Features, Tensor]]:
        """A pass over the whole split."""
        for batch in self.source.batches(in_order(len(self.source.ids), self.batch_size)):
            if batch.views:
                yield batch.views[0], batch.targets


def in_order(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Indices]:
    """A plan that takes 0 … count-1 once: this process's contiguous share, in batches."""
    mine = np.array_split(np.arange(count, dtype=np.int64), world)[rank]
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]


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
