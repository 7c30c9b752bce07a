"""Where batches come from: photos through the frozen backbone, or features that a cache holds.

The loop says which photos come next (`plan.py`), a source only fetches them, so the order of a run never depends on
where its features come from, on threads, or on the number of processes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.base import Features
from intclip.backbones.preprocess import Preprocess
from intclip.data.loading import PixelBatch, pixel_batches
from intclip.data.sample import Sample
from intclip.data.transforms import Augment
from intclip.training.plan import Indices


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


class FeatureSource(Protocol):
    """One split of a dataset as features.

    Attributes:
        ids: Sample ids, in order of the split.
        targets: (N, K) float32.
    """

    ids: list[str]
    targets: npt.NDArray[np.float32]

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """One batch for every entry of `plan`, in order; without views where none of its photos could be read.

        Args:
            plan: Positions in the split, batch by batch; none empty.
            epoch: Epoch (from 1) whose augmentation is wanted; None for the plain photos.
            views: Augmented views per photo.
        """


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


def kept_view(epoch: int, view: int, views: int, kept: int) -> int:
    """Which of the `kept` views (from 1) is the `view`-th (from 0) of `views` in an epoch (from 1)."""
    return ((epoch - 1) * views + view) % kept + 1


def in_order(count: int, batch_size: int, rank: int = 0, world: int = 1) -> list[Indices]:
    """A plan that takes 0 … count-1 once: this process's contiguous share, in batches."""
    mine = np.array_split(np.arange(count, dtype=np.int64), world)[rank]
    return [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]


class PixelSource:
    """A split read from its photos at every pass: decode, augment, preprocess, frozen backbone.

    Args:
        samples: The split.
        preprocess: Photo to pixels.
        frozen: Pixels to the features that the method asks for.
        augment: Makes training views; None trains on the plain photos.
        kept_views: The epochs take this many views of each photo in turn, those that a cache would keep; 0 makes new
            ones in every epoch.
        workers: Threads that decode; 0 takes the usable cores.
        device: Where features are wanted.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        preprocess: Preprocess,
        frozen: Callable[[Tensor], Features],
        *,
        augment: Augment | None = None,
        kept_views: int = 0,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.ids = [sample.id for sample in samples]
        self.targets = np.stack([sample.targets for sample in samples])
        self._samples = samples
        self._preprocess = preprocess
        self._frozen = frozen
        self._augment = augment
        self._kept_views = kept_views
        self._workers = workers or None
        self._device = device or torch.device("cpu")

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """See `FeatureSource.batches`."""
        for size, run in groupby(plan, key=len):
            indices = np.concatenate(list(run))
            streams = [self._stream(indices, size, epoch, view, views) for view in range(views)]
            for parts in zip(*streams, strict=True):
                rows = parts[0].indices
                if len(rows):
                    features = [self._frozen(part.pixels) for part in parts]
                    yield Batch(features, self._targets(rows), rows)
                else:
                    yield Batch([], self._targets(rows), rows)

    def _stream(self, indices: Indices, size: int, epoch: int | None, view: int, views: int) -> Iterator[PixelBatch]:
        augment = None if epoch is None else self._augment
        if augment is not None and self._kept_views:
            epoch, view = 0, kept_view(epoch or 1, view, views, self._kept_views)
        return pixel_batches(
            self._samples,
            self._preprocess,
            size,
            indices=indices,
            augment=augment,
            epoch=epoch or 0,
            view=view,
            workers=self._workers,
        )

    def _targets(self, rows: Indices) -> Tensor:
        return torch.from_numpy(self.targets[rows]).to(self._device)
