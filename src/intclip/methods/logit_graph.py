"""A graph on the labels' logits: labels support or oppose each other.

    z'_j = z_j + a · Σ_i C_ji (p_i − π_i) − b · Σ_i X_ji p_i,     p = sigmoid(z)

C: the mean over labels i that support j, P(j | i) ≥ t (`label_graph.py`); π: label frequencies, so that an average
photo gets no message. X: the mean over labels i that oppose j: they occur together much more rarely than independent
labels would. a and b are learned, initially 0, which is the model without a graph.

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
        threshold: t: minimum conditional probability for a label to support another.
        exclusion_ratio: Labels oppose each other if their co-occurrence is at most this share of the expected one.
        min_expected: Minimum expected photos of a pair for opposition.
    """

    threshold: float = Field(default=0.3, gt=0, le=1)
    exclusion_ratio: float = Field(default=0.2, ge=0, lt=1)
    min_expected: float = Field(default=5, gt=0)


class LogitGraph(nn.Module):
    """Messages between logits (B, K); zero before `fit`.

    Args:
        classes: K.
        options: Criteria for neighbours.

    Attributes:
        cooccurrence: C (K, K), receivers by row, row sums 1 or 0, 0 on the diagonal.
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
        """Determine neighbours from the training split's targets, in batches (B, K)."""
        counts = count_labels(targets, len(self.frequency))
        together = cooccurrence_adjacency(counts.conditional().T, threshold=self.options.threshold, neighbour_share=1)
        self.cooccurrence.copy_(together.fill_diagonal_(0))
        self.exclusion.copy_(
            exclusion_adjacency(counts, ratio=self.options.exclusion_ratio, min_expected=self.options.min_expected)
        )
        self.frequency.copy_(counts.frequencies())

    def forward(self, logits: Tensor) -> Tensor:
        """Return logits (B, K) plus their neighbours' messages."""
        probabilities = logits.sigmoid()
        brought = (probabilities - self.frequency) @ self.cooccurrence.T
        kept_away = probabilities @ self.exclusion.T
        return logits + self.strengths[0] * brought - self.strengths[1] * kept_away


def exclusion_adjacency(counts: LabelCounts, *, ratio: float, min_expected: float) -> Tensor:
    """Return which labels oppose each other (K, K), float32: symmetric edges, with rows divided by their sum.

    Args:
        counts: Counts over the training split.
        ratio: An edge is a pair with Σ y_i y_j ≤ ratio · (what independent labels would give).
        min_expected: Pairs with fewer expected photos have no edge.
    """
    expected = counts.known * counts.known.T / counts.photos.clamp_min(1)
    edges = ((counts.together <= ratio * expected) & (expected >= min_expected)).float().fill_diagonal_(0)
    return edges / edges.sum(dim=1, keepdim=True).clamp_min(1)
