"""A label graph from co-occurrence and text, and graph convolutions on it.

GCN layer     H' = Â H W + b,   Â = D^−½ A D^−½                               (Kipf and Welling, 2017)
co-occurrence A_ij = 1 where P(j | i) ≥ t, then p / Σ_j A_ij off the diagonal and 1 − p on it    (ML-GCN, CVPR 2019)
text          A_ij = max(cos(e_i − ē, e_j − ē), 0) for the k nearest labels of i or j, 1 on the diagonal
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.labels.taxonomy import Taxonomy


class GraphOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of a label graph.

    Attributes:
        cooccurrence: Weight of the co-occurrence graph.
        text: Weight of the graph of the labels' text; if both are 0, there are no edges.
        threshold: Minimum conditional probability of an edge.
        neighbour_share: p: total weight of a label's neighbours by co-occurrence.
        neighbours: k: number of nearest labels by text.
    """

    cooccurrence: float = Field(default=0.5, ge=0)
    text: float = Field(default=0.5, ge=0)
    threshold: float = Field(default=0.2, ge=0, le=1)
    neighbour_share: float = Field(default=0.25, ge=0, lt=1)
    neighbours: int = Field(default=4, ge=1)


class LabelCounts:
    """Counts of labels and label pairs over batches; targets are shares of votes, unknown labels are skipped.

    Args:
        classes: K.

    Attributes:
        together: (K, K), sums of y_i y_j over photos where both are known, float64.
        known: (K, K), sums of y_i over photos where j is known too.
        photos: (K, K), photos where both are known, float64.
    """

    def __init__(self, classes: int) -> None:
        self.together = torch.zeros(classes, classes, dtype=torch.float64)
        self.known = torch.zeros_like(self.together)
        self.photos = torch.zeros_like(self.together)

    def add(self, targets: Tensor) -> None:
        """Add targets (B, K) in [0, 1]; NaN is unknown."""
        known = (~targets.isnan()).double().cpu()
        y = targets.nan_to_num(0).double().cpu()
        self.together += y.T @ y
        self.known += y.T @ known
        self.photos += known.T @ known

    @property
    def counts(self) -> Tensor:
        """Return Σ y_i of each label (K,)."""
        return self.known.diagonal()

    def frequencies(self) -> Tensor:
        """Return each label's mean y_i over photos where it is known (K,), float64; 0 if it never is."""
        return self.counts / self.photos.diagonal().clamp_min(1)

    def conditional(self) -> Tensor:
        """Return P(j | i) (K, K), float32: rows i, 1 on the diagonal; 0 for a label that never occurs."""
        shares = (self.together / self.known.clamp_min(1e-12)).float()
        return shares.fill_diagonal_(1)


def count_labels(targets: Iterable[Tensor], classes: int) -> LabelCounts:
    """Count over batches of targets (B, K)."""
    counts = LabelCounts(classes)
    for batch in targets:
        counts.add(batch)
    return counts


def cooccurrence_adjacency(conditional: Tensor, *, threshold: float, neighbour_share: float) -> Tensor:
    """Return binarised, re-weighted co-occurrence (K, K); rows sum to 1; not symmetric (ML-GCN, Eq. 7 and 8).

    Args:
        conditional: P(j | i) (K, K).
        threshold: t.
        neighbour_share: p; a label without neighbours has weight 1 for itself.
    """
    edges = (conditional >= threshold).float().fill_diagonal_(0)
    degree = edges.sum(dim=1, keepdim=True)
    weights = neighbour_share * edges / degree.clamp_min(1)
    return weights + torch.diag(torch.where(degree.squeeze(1) > 0, 1 - neighbour_share, 1.0))


def text_adjacency(embeddings: Tensor, *, neighbours: int) -> Tensor:
    """Return the similarity of labels by their text (K, K): symmetric, in [0, 1], 1 on the diagonal.

    The labels' mean is subtracted first, since sentences of one form have similar embeddings.

    Args:
        embeddings: (K, D).
        neighbours: k.
    """
    classes = len(embeddings)
    unit = F.normalize(embeddings - embeddings.mean(dim=0), dim=1)
    cosines = (unit @ unit.T).clamp(0, 1).fill_diagonal_(0)
    kept = torch.zeros_like(cosines)
    if classes > 1:
        nearest = cosines.topk(min(neighbours, classes - 1), dim=1).indices
        kept.scatter_(1, nearest, 1)
    return (cosines * kept.maximum(kept.T)).fill_diagonal_(1)


def normalize_adjacency(adjacency: Tensor) -> Tensor:
    """Return D^−½ A D^−½ (K, K) with the row sums D of A ≥ 0; rows of zeros are unchanged."""
    degree = adjacency.sum(dim=1)
    scale = torch.where(degree > 0, degree.clamp_min(1e-12).rsqrt(), 0.0)
    return scale[:, None] * adjacency * scale


def label_adjacency(conditional: Tensor, embeddings: Tensor, options: GraphOptions) -> Tensor:
    """Return the graph of the options (K, K), with normalised parts.

    Args:
        conditional: P(j | i) (K, K).
        embeddings: Label text embeddings (K, D).
        options: Weights of the parts, which are divided by their sum.
    """
    total = options.cooccurrence + options.text
    if total == 0:
        return torch.eye(len(embeddings), device=embeddings.device)
    seen = cooccurrence_adjacency(
        conditional.to(embeddings), threshold=options.threshold, neighbour_share=options.neighbour_share
    )
    meant = text_adjacency(embeddings, neighbours=options.neighbours)
    return (options.cooccurrence * normalize_adjacency(seen) + options.text * normalize_adjacency(meant)) / total


class LabelGCN(nn.Module):
    """Graph convolutions with LeakyReLU (0.2) between them; Â is passed to each call.

    Args:
        widths: Widths of input, hidden layers and output, at least two.
    """

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, embeddings: Tensor, adjacency: Tensor) -> Tensor:
        """Return (K, D_out) for embeddings (K, D_in) and a normalised adjacency (K, K)."""
        x = embeddings
        for index, layer in enumerate(self.layers):
            x = layer(adjacency @ x)
            if index + 1 < len(self.layers):
                x = F.leaky_relu(x, 0.2)
        return x


def label_embeddings(text: TextTower, taxonomy: Taxonomy, form: str) -> Tensor:
    """Return text features (K, D) of a taxonomy's sentences with norm √D, so that coordinates are of order 1.

    Args:
        text: A text tower.
        taxonomy: The labels.
        form: Form of the sentences.

    Raises:
        TaxonomyError: The taxonomy lacks this form.
    """
    return text_embeddings(text, taxonomy.sentences(form))


@torch.no_grad()
def text_embeddings(text: TextTower, sentences: Sequence[str]) -> Tensor:
    """Return text features (T, D) of sentences with norm √D."""
    scaled: Tensor = text.embed_texts(sentences) * text.embed_dim**0.5
    return scaled
