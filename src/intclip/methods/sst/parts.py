"""Parts of SST: semantic decoupling, gated graph network, pairwise co-occurrence, pseudo labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SemanticDecoupling(nn.Module):
    """One feature a label: regions weighed by how well they fit the label's word vector.

        a = w · (P tanh(U x ∘ V e) + p) + b,  softmax over regions,  f_k = Σ a x        (SSGRL, Chen et al., ICCV 2019)

    Args:
        channels: Of the map, d.
        words: Of the label embeddings.
        inner: Common width.
    """

    def __init__(self, channels: int, words: int, inner: int) -> None:
        super().__init__()
        self.image = nn.Linear(channels, inner, bias=False)
        self.words = nn.Linear(words, inner, bias=False)
        self.joint = nn.Linear(inner, inner)
        self.score = nn.Linear(inner, 1)

    def forward(self, regions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Label features (B, K, d) and weights (B, K, N) that sum to 1, of regions (B, N, d) and labels (K, words)."""
        # (B, N, K, inner): labels are few
        joint = torch.tanh(self.image(regions)[:, :, None] * self.words(labels))
        weights = self.score(self.joint(joint)).squeeze(3).softmax(dim=1).transpose(1, 2)
        return weights @ regions, weights


class GatedGraph(nn.Module):
    """Gated graph neural network over the labels (Li et al., 2016): messages along both directions, then a GRU.

    Args:
        dim: Width d of a label's state.
        steps: Of propagation.
    """

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.message = nn.Linear(2 * dim, 3 * dim)
        self.state = nn.Linear(dim, 3 * dim)

    def forward(self, states: Tensor, adjacency: Tensor) -> Tensor:
        """States (B, K, d) after the steps; adjacency (K, K), rows to columns."""
        for _ in range(self.steps):
            messages = torch.cat([adjacency @ states, adjacency.T @ states], dim=2)
            message = self.message(messages).chunk(3, dim=2)
            state = self.state(states).chunk(3, dim=2)
            reset, update = torch.sigmoid(message[0] + state[0]), torch.sigmoid(message[1] + state[1])
            states = (1 - update) * torch.tanh(message[2] + reset * state[2]) + update * states
        return states


class PairHead(nn.Module):
    """Logits of the K(K − 1)/2 label pairs occurring together: a two-layer network of both labels' features.

    Args:
        classes: K.
        dim: Width d of a label's feature.
    """

    first: Tensor
    second: Tensor

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, offset=1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        # One linear layer of both features stacked, as the sum of two.
        self.left = nn.Linear(dim, dim)
        self.right = nn.Linear(dim, dim, bias=False)
        self.score = nn.Linear(dim, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, pairs), pairs (i, j) with i < j row by row, of label features (B, K, d)."""
        hidden = torch.relu(self.left(features)[:, self.first] + self.right(features)[:, self.second])
        logits: Tensor = self.score(hidden).squeeze(2)
        return logits

    def targets(self, targets: Tensor) -> Tensor:
        """Whether both labels hold, (B, pairs): y_i y_j, NaN where one is unknown."""
        return targets[:, self.first] * targets[:, self.second]

    def matrix(self, logits: Tensor) -> Tensor:
        """Probabilities (B, K, K) of the pairs, symmetric, 0 on the diagonal."""
        classes = int(self.second.max()) + 1 if len(self.second) else 1
        upper = logits.new_zeros(len(logits), classes, classes)
        upper[:, self.first, self.second] = logits.sigmoid()
        return upper + upper.transpose(1, 2)


def contrastive_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Mean over labels and pairs of photos of 1 − cos where both have the label, 1 + cos where one has (SST, Eq. 8).

    Args:
        features: Label features (B, K, d).
        targets: (B, K) in [0, 1]; NaN, where unknown, makes no pair.
    """
    known = ~targets.isnan()
    y = targets.nan_to_num(0)
    cosines = same_label_cosines(features)
    both = y[:, None] * y[None]
    one = y[:, None] * (1 - y[None]) + (1 - y[:, None]) * y[None]
    pairs = (known[:, None] & known[None]).float() * ~torch.eye(len(y), dtype=torch.bool, device=y.device)[..., None]
    weights = pairs * (both + one)
    total = pairs * (both * (1 - cosines) + one * (1 + cosines))
    return total.sum() / weights.sum().clamp_min(1)


def same_label_cosines(features: Tensor) -> Tensor:
    """Cosines (B, B, K) of every label's feature in two photos, of label features (B, K, d)."""
    unit = F.normalize(features, dim=2)
    return torch.einsum("mkd,nkd->mnk", unit, unit)


def intra_pseudo_labels(together: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Unknown labels that occur with the photo's known positives, by their mean probability, as 1; others NaN.

    Args:
        together: Probabilities of pairs (B, K, K).
        targets: (B, K); NaN where unknown.
        margin: Mean probability from which a label is taken as true.
    """
    positive = _positive(targets)
    score = torch.einsum("bkj,bj->bk", together, positive)
    return _fill(score, positive.sum(1)[:, None], targets, margin)


def inter_pseudo_labels(features: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Unknown labels whose features look like those of photos known to have them, by mean cosine, as 1; others NaN.

    Args:
        features: Label features (B, K, d).
        targets: (B, K); NaN where unknown.
        margin: Mean cosine from which a label is taken as true.
    """
    positive = _positive(targets)
    score = torch.einsum("mnk,nk->mk", same_label_cosines(features), positive)
    return _fill(score, positive.sum(0)[None], targets, margin)


def _positive(targets: Tensor) -> Tensor:
    return (targets.nan_to_num(0) >= 0.5).float()


def _fill(score: Tensor, count: Tensor, targets: Tensor, margin: float) -> Tensor:
    taken = targets.isnan() & (count > 0) & (score / count.clamp_min(1) >= margin)
    return torch.where(taken, 1.0, torch.nan)
