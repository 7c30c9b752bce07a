"""A split whose photos come with what stands beside them: object masks, laid out as each view is, and words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.data.masks import Masks
from intclip.data.sample import Sample
from intclip.data.transforms import Augment, AugmentConfig
from intclip.posts.beside import WordTable
from intclip.training.plan import Indices
from intclip.training.source import Batch, FeatureSource, kept_view


class BesideSource:
    """A source with further entries in every view's features; see `intclip.methods.base.Beside`.

    Args:
        source: The photos.
        samples: The split.
        plain: Lays a mask out as a photo that is not augmented.
        augment: Made the training views; None for plain photos.
        kept_views: As `PixelSource` has them.
        masks: Where there are any, and the method reads them.
        text: Embeddings of the photos' words (N, D), where the method reads them.
        words: The same word by word.
    """

    def __init__(
        self,
        source: FeatureSource,
        samples: Sequence[Sample],
        plain: Augment,
        *,
        augment: Augment | None,
        kept_views: int,
        masks: Masks | None = None,
        text: Tensor | None = None,
        words: WordTable | None = None,
    ) -> None:
        self.ids, self.targets = source.ids, source.targets
        self._source, self._plain, self._augment = source, plain, augment
        self._kept_views, self._masks, self._text = kept_views, masks, text
        self._words = words

    def batches(self, plan: Sequence[Indices], *, epoch: int | None = None, views: int = 1) -> Iterator[Batch]:
        """See `FeatureSource.batches`."""
        for batch in self._source.batches(plan, epoch=epoch, views=views):
            added = [view | self._beside(batch, epoch, number, views) for number, view in enumerate(batch.views)]
            yield replace(batch, views=added)

    def _beside(self, batch: Batch, epoch: int | None, view: int, views: int) -> dict[str, Tensor]:
        device = batch.targets.device
        found: dict[str, Tensor] = {}
        if self._text is not None:
            found["text"] = self._text[torch.from_numpy(batch.indices)].to(device)
        if self._words is not None:
            found["words"] = self._words(batch.indices).to(device)
        if self._masks is not None:
            augment = self._plain if epoch is None or self._augment is None else self._augment
            if augment is self._plain:
                epoch, view = 0, 0
            elif self._kept_views:
                epoch, view = 0, kept_view(epoch or 1, view, views, self._kept_views)
            rows = [self._mask(augment, int(index), epoch or 0, view) for index in batch.indices]
            found["mask"] = torch.from_numpy(np.stack(rows)[:, None]).to(device)
        return found

    def _mask(self, augment: Augment, index: int, epoch: int, view: int) -> npt.NDArray[np.float32]:
        mask = self._masks(self.ids[index]) if self._masks is not None else None
        if mask is None:
            return np.full((augment.preprocess.size,) * 2, np.nan, dtype=np.float32)
        laid_out = augment.layout(mask, epoch=epoch, index=index, view=view)
        return np.asarray(laid_out, dtype=np.float32) / np.float32(255)


PLAIN = AugmentConfig(crop="eval", flip=0, cutout=0, operations=0)
"""No augmentation: what evaluation sees."""
