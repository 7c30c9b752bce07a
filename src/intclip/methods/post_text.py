"""The text of a post as extra inputs of a method; see `methods.base.ExtraInput`."""

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
"""Maximum number of vectors per post: its whole text and its first words."""
Texts = Sequence[str | None]
"""One per post; None or blank for a post without text."""


@dataclass(frozen=True, eq=False)
class WordTable:
    """Word vectors of N posts.

    Attributes:
        rows: (N, L) indices of a post's vectors, in order; 0 for padding.
        vectors: (V, D) with norm √D; the first one is 0.
    """

    rows: Tensor
    vectors: Tensor

    def __call__(self, indices: npt.NDArray[np.integer[Any]]) -> Tensor:
        """Return the words (B, L, D) of some posts."""
        return self.vectors[self.rows[torch.from_numpy(indices)]]


def word_table(texts: Texts, backbone: Backbone) -> WordTable | None:
    """Embed texts and their words, each once, by the backbone's text tower; None if no post has text."""
    indices: dict[str, int] = {}
    found: list[list[int]] = []
    for text in texts:
        whole = " ".join((text or "").split())
        parts = [whole, *whole.split()][:MOST_WORDS] if whole else []
        found.append([indices.setdefault(part, len(indices) + 1) for part in parts])
    if not indices:
        return None
    vectors = F.pad(_embedded(list(indices), backbone), (0, 0, 1, 0))
    longest = max(map(len, found))
    rows = torch.tensor([row + [0] * (longest - len(row)) for row in found], dtype=torch.int64)
    return WordTable(rows, vectors)


def text_vectors(texts: Texts, backbone: Backbone) -> Tensor | None:
    """Embed texts by the backbone's text tower: (N, D) with norm √D, 0 for posts without text.

    None if no post has text.
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


TEXT_READERS: dict[str, Callable[[Texts, Backbone], Tensor | None]] = {"text": text_vectors, "words": _word_vectors}
"""Readers of text by their name in `ExtraInput`: texts to vectors, or None without any text."""


def _embedded(texts: Sequence[str], backbone: Backbone) -> Tensor:
    """Return embeddings (T, D) with norm √D."""
    found = backbone.embed_texts(texts, long="average").cpu()
    return found.mul(found.shape[1] ** 0.5)
