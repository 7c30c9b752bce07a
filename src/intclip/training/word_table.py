"""The words of a split, each embedded once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.backbones.base import Backbone
from intclip.data.sample import Sample
from intclip.posts.encoders import tower_encoder
from intclip.training.plan import Indices

MOST_WORDS = 32
"""Vectors of a post: its text as a whole and its first words."""


@dataclass(frozen=True, eq=False)
class WordTable:
    """Vectors of a split's words.

    Attributes:
        rows: (N, L) which vectors a sample has, in order; 0 for none.
        vectors: (V, D), of length √D; the first one 0.
    """

    rows: Tensor
    vectors: Tensor

    def __call__(self, indices: Indices) -> Tensor:
        """Words (B, L, D) of samples."""
        return self.vectors[self.rows[torch.from_numpy(indices)]]


def word_table(samples: Sequence[Sample], backbone: Backbone) -> WordTable | None:
    """The texts of samples and their words, by the backbone's text tower; None where no sample has a text."""
    places: dict[str, int] = {}
    found: list[list[int]] = []
    for sample in samples:
        text = " ".join((sample.text or "").split())
        parts = [text, *text.split()][:MOST_WORDS] if text else []
        found.append([places.setdefault(part, len(places) + 1) for part in parts])
    if not places:
        return None
    embedded = torch.from_numpy(tower_encoder(backbone)(list(places)))
    vectors = F.pad(F.normalize(embedded, dim=1) * embedded.shape[1] ** 0.5, (0, 0, 1, 0))
    longest = max(map(len, found))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in found], dtype=torch.int64)
    return WordTable(rows, vectors)
