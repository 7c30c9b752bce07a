"""Words beside a photo, as entries of its features that a method may read: see `methods.base.Beside`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.backbones.base import Backbone

MOST_WORDS = 32
"""Vectors of a post: its text as a whole and its first words."""
Texts = Sequence[str | None]
"""One a post; None or blank where it has none."""


@dataclass(frozen=True, eq=False)
class WordTable:
    """Vectors of the words of N posts.

    Attributes:
        rows: (N, L) which vectors a post has, in order; 0 for none.
        vectors: (V, D), of length √D; the first one 0.
    """

    rows: Tensor
    vectors: Tensor

    def __call__(self, indices: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Words (B, L, D) of some posts."""
        return self.vectors[self.rows[torch.from_numpy(indices)]]


def word_table(texts: Texts, backbone: Backbone) -> WordTable | None:
    """Texts and their words, each embedded once by the backbone's text tower; None where no post has any."""
    places: dict[str, int] = {}
    found: list[list[int]] = []
    for text in texts:
        said = " ".join((text or "").split())
        parts = [said, *said.split()][:MOST_WORDS] if said else []
        found.append([places.setdefault(part, len(places) + 1) for part in parts])
    if not places:
        return None
    vectors = F.pad(_embedded(list(places), backbone), (0, 0, 1, 0))
    longest = max(map(len, found))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in found], dtype=torch.int64)
    return WordTable(rows, vectors)


def text_vectors(texts: Texts, backbone: Backbone) -> Tensor | None:
    """Embeddings (N, D) of texts by the backbone's text tower, of length √D, 0 where a post has none.

    None where no post has any.
    """
    rows = [row for row, text in enumerate(texts) if text and text.strip()]
    if not rows:
        return None
    found = _embedded([texts[row] or "" for row in rows], backbone)
    vectors = torch.zeros(len(texts), found.shape[1])
    vectors[rows] = found
    return vectors


def _word_vectors(texts: Texts, backbone: Backbone) -> Tensor | None:
    table = word_table(texts, backbone)
    return None if table is None else table(np.arange(len(texts)))


READERS: dict[str, Callable[[Texts, Backbone], Tensor | None]] = {"text": text_vectors, "words": _word_vectors}
"""What a method may read of words, by its name in `Beside`: texts to vectors, None if there are none."""


def _embedded(texts: Sequence[str], backbone: Backbone) -> Tensor:
    """Embeddings (T, D) of length √D."""
    found = backbone.embed_texts(texts, long="average").cpu()
    return found.mul(found.shape[1] ** 0.5)
