"""Texts as images: features of a split are made from its texts, to train a method without labelled photos.

In the joint space a text is near the photos that it describes, but texts as a whole are apart from photos
(the modality gap). Text embeddings t are therefore aligned to photos by first and second moments:

    x = r · unit(μ_I + Σ_I^½ Σ_T^−½ (t − μ_T))

μ and Σ are means and covariances of unit embeddings of the texts (T) and of photos (I), whose labels are not used; r is
the photos' mean norm. `pooled` is made from whole texts, `regions` from their words, one region per word.

Source: Guo et al., Texts as Images in Prompt Tuning for Multi-Label Image Recognition, CVPR 2023 (whole texts and
single words); the moments are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.data.sample import Sample
from intclip.errors import DatasetError, RecipeError
from intclip.training.plan import Indices
from intclip.training.source import Photos, Read, View

MADE: tuple[FeatureName, ...] = ("pooled", "regions")
"""Features that texts can replace."""
_RIDGE = 1.0
"""Ridge of the covariances as a share of the mean variance, since few texts do not cover all directions."""


@dataclass(frozen=True, eq=False)
class ModalityGap:
    """Map from text embeddings to the distribution of photos.

    Attributes:
        text_mean: (D,).
        photo_mean: (D,).
        turn: (D, D), Σ_I^½ Σ_T^−½.
        length: r.
    """

    text_mean: Tensor
    photo_mean: Tensor
    turn: Tensor
    length: float

    def __call__(self, text: Tensor) -> Tensor:
        """Map unit text embeddings (…, D) to photo embeddings (…, D)."""
        moved = self.photo_mean + (text - self.text_mean) @ self.turn.T
        placed: Tensor = self.length * F.normalize(moved, dim=-1)
        return placed


def modality_gap(texts: Tensor, photos: Tensor) -> ModalityGap:
    """Fit the map from unit text embeddings (T, D) to photo vectors (N, D) of any norm."""
    unit = F.normalize(photos, dim=1)
    return gap_of_moments(texts, unit.mean(dim=0), torch.cov(unit.T), float(photos.norm(dim=1).mean()))


def gap_of_moments(texts: Tensor, mean: Tensor, covariance: Tensor, length: float) -> ModalityGap:
    """Fit the map from unit text embeddings (T, D) to photos with this mean (D,), covariance (D, D) and norm."""
    turn = _root(covariance, 0.5) @ _root(torch.cov(texts.T), -0.5)
    return ModalityGap(texts.mean(dim=0), mean, turn.to(texts.dtype), length)


def _root(covariance: Tensor, power: float) -> Tensor:
    """Compute a power of a covariance with a ridge, (D, D), float64."""
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0) + _RIDGE * values.mean()
    root: Tensor = (vectors * values**power) @ vectors.T
    return root


def text_reader(samples: Sequence[Sample], backbone: Backbone, needs: Sequence[FeatureName], photos: Features) -> Read:
    """Make a reader of features of texts instead of photos.

    The plain view of a sample is the mean over the lines of its text, an augmented one the mean of some of them.

    Args:
        samples: The split; each has a text.
        backbone: Embeds the texts.
        needs: Features of the method.
        photos: The same features of some photos (N, …), whose labels are not used.

    Raises:
        RecipeError: The method needs features that texts cannot replace.
        DatasetError: A sample has no text.
    """
    if missing := sorted(set(needs) - set(MADE)):
        raise RecipeError(
            f"data.texts_as_images: texts can replace {' and '.join(MADE)}, but this method needs "
            f"{', '.join(missing)}; "
            "choose one that trains no image layers (of intclip: method.options.train=none)"
        )
    lines = [[line for line in (sample.text or "").splitlines() if line.strip()] for sample in samples]
    for sample, found in zip(samples, lines, strict=True):
        if not found:
            raise DatasetError(f"data.texts_as_images: sample {sample.id} has no text")
    flat = list(dict.fromkeys(line for found in lines for line in found))
    embedded = backbone.embed_texts(flat, long="average").cpu()
    whole = modality_gap(embedded, photos["pooled"].cpu()) if "pooled" in needs else None
    place = {line: row for row, line in enumerate(flat)}
    words = _Words(flat, backbone, photos["regions"].cpu()) if "regions" in needs else None

    def features(index: int, view: View) -> Features:
        chosen = _some(lines[index], index, view)
        made: Features = {}
        if whole is not None:
            rows = embedded[[place[line] for line in chosen]]
            made["pooled"] = whole(F.normalize(rows.mean(dim=0), dim=0))
        if words is not None:
            made["regions"] = words(chosen)
        return made

    def read(plan: Sequence[Indices], views: Sequence[View], errors: dict[int, str]) -> Iterator[Photos]:
        device = next(backbone.parameters()).device
        for indices in plan:
            parts = []
            for view in views:
                rows = [features(int(index), view) for index in indices]
                parts.append({name: torch.stack([row[name] for row in rows]).to(device) for name in rows[0]})
            yield indices, parts

    return read


class _Words:
    """Words of texts arranged as regions of a photo."""

    def __init__(self, lines: Sequence[str], backbone: Backbone, regions: Tensor) -> None:
        vocabulary = list(dict.fromkeys(word for line in lines for word in line.split()))
        self._place = {word: row for row, word in enumerate(vocabulary)}
        self._grid = (int(regions.shape[2]), int(regions.shape[3]))
        embedded = backbone.embed_texts(vocabulary, long="average").cpu()
        counts = torch.zeros(len(vocabulary))
        for line in lines:
            for word in line.split():
                counts[self._place[word]] += 1
        # Moments over words with repetition, weighted instead of repeated.
        share = counts / counts.sum()
        mean = share @ embedded
        centred = embedded - mean
        rows = regions.flatten(2).transpose(1, 2).flatten(0, 1)
        unit = F.normalize(rows, dim=1)
        turn = _root(torch.cov(unit.T), 0.5) @ _root(centred.T @ (share[:, None] * centred), -0.5)
        gap = ModalityGap(mean, unit.mean(dim=0), turn.to(embedded.dtype), float(rows.norm(dim=1).mean()))
        self._vectors = gap(embedded)

    def __call__(self, lines: Sequence[str]) -> Tensor:
        """Arrange words in order as regions (D, H, W), repeating them if there are too few."""
        words = [word for line in lines for word in line.split()]
        height, width = self._grid
        rows = [self._place[words[number % len(words)]] for number in range(height * width)]
        return self._vectors[rows].T.reshape(-1, height, width)


def _some(lines: Sequence[str], index: int, view: View) -> Sequence[str]:
    """Select some lines of a sample, at least one, fixed per view; all without a view."""
    if view is None or len(lines) == 1:
        return lines
    rng = np.random.default_rng((*view, index))
    count = int(rng.integers(1, len(lines) + 1))
    return [lines[number] for number in sorted(rng.choice(len(lines), count, replace=False))]
