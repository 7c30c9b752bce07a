"""A graph over the labels' logits: what was found of one label speaks for or against another.

    z'_j = z_j + a · Σ_i C_ji (p_i − π_i) − b · Σ_i X_ji p_i,     p = sigmoid(z)

C: the mean over labels i that bring j along, P(j | i) ≥ t (`label_graph.py`); π: how frequent a label is, so that a
photo like any other gets nothing. X: the mean over labels i that keep j away, seen with it much more rarely than chance
would have it. a and b are learned and start at 0: the start is the model without a graph.

Not in the IntCLIP paper.
"""

from collections.abc import Iterable

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.methods.label_graph import LabelCounts, cooccurrence_adjacency, count_labels


class LogitGraphOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of the graph.

    Attributes:
        threshold: t: conditional probability from which a label brings another along.
        exclusion_ratio: A pair that is seen together at most this share of what chance gives excludes each other.
        min_expected: Photos that chance must give a pair before its absence says anything.
    """

    threshold: float = Field(default=0.3, gt=0, le=1)
    exclusion_ratio: float = Field(default=0.2, ge=0, lt=1)
    min_expected: float = Field(default=5, gt=0)


class LogitGraph(nn.Module):
    """Messages between logits (B, K); it adds nothing before `fit`.

    Args:
        classes: K.
        options: Which labels are neighbours.

    Attributes:
        cooccurrence: C (K, K), rows of sum 1 or 0, receivers first, 0 on the diagonal.
        exclusion: X (K, K), likewise.
        frequency: π (K,).
        strengths: a and b (2,).
    """

    cooccurrence: Tensor
    exclusion: Tensor
    frequency: Tensor

    def __init__(self, classes: int, options: LogitGraphOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("cooccurrence", torch.zeros(classes, classes))
        self.register_buffer("exclusion", torch.zeros(classes, classes))
        self.register_buffer("frequency", torch.zeros(classes))
        self.strengths = nn.Parameter(torch.zeros(2))

    @torch.no_grad()
    def fit(self, targets: Iterable[Tensor]) -> None:
        """Take the neighbours from the training split's targets, batches of (B, K)."""
        counts = count_labels(targets, len(self.frequency))
        together = cooccurrence_adjacency(counts.conditional().T, threshold=self.options.threshold, neighbour_share=1)
        self.cooccurrence.copy_(together.fill_diagonal_(0))
        self.exclusion.copy_(
            exclusion_adjacency(counts, ratio=self.options.exclusion_ratio, min_expected=self.options.min_expected)
        )
        self.frequency.copy_(counts.frequencies())

    def forward(self, logits: Tensor) -> Tensor:
        """Logits (B, K) with their neighbours' say."""
        probabilities = logits.sigmoid()
        brought = (probabilities - self.frequency) @ self.cooccurrence.T
        kept_away = probabilities @ self.exclusion.T
        return logits + self.strengths[0] * brought - self.strengths[1] * kept_away


def exclusion_adjacency(counts: LabelCounts, *, ratio: float, min_expected: float) -> Tensor:
    """Which labels keep each other away (K, K), float32, symmetric edges with rows divided by their sum.

    Args:
        counts: Counts over the training split.
        ratio: An edge is a pair with Σ y_i y_j ≤ ratio · (what independent labels would give).
        min_expected: Pairs that chance gives fewer times than this have no edge.
    """
    expected = counts.known * counts.known.T / counts.photos.clamp_min(1)
    edges = ((counts.together <= ratio * expected) & (expected >= min_expected)).float().fill_diagonal_(0)
    return edges / edges.sum(dim=1, keepdim=True).clamp_min(1)
