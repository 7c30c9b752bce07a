"""Parts of SST: semantic decoupling, gated graph network, pairwise co-occurrence, pseudo labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.methods.query_decoder import GroupLinear


class SemanticDecoupling(nn.Module):
    """One feature per label: the mean of regions, weighted by their match with the label's embedding.

        a = w · (P tanh(U x ∘ V e) + p) + b,  softmax over regions,  f_k = Σ a x        (SSGRL, Chen et al., ICCV 2019)

    Args:
        channels: Channels d of the map.
        words: Width of the label embeddings.
        inner: Common width.
    """

    def __init__(self, channels: int, words: int, inner: int) -> None:
        super().__init__()
        self.image = nn.Linear(channels, inner, bias=False)
        self.words = nn.Linear(words, inner, bias=False)
        self.joint = nn.Linear(inner, inner)
        self.score = nn.Linear(inner, 1)

    def forward(self, regions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return label features (B, K, d) and weights (B, K, N), sum 1, of regions (B, N, d) and labels (K, words)."""
        # (B, N, K, inner): there are few labels
        joint = torch.tanh(self.image(regions)[:, :, None] * self.words(labels))
        weights = self.score(self.joint(joint)).squeeze(3).softmax(dim=1).transpose(1, 2)
        return weights @ regions, weights


class GatedGraph(nn.Module):
    """Gated graph neural network on the labels (Li et al., 2016): messages in both directions, then a gate.

        a = [A h, Aᵀ h];  z = σ(W_z a + U_z h + b_z);  r = σ(W_r a + U_r h + b_r)
        h ← (1 − z) h + z tanh(W a + U (r h) + b)

    The reset gate is applied to the state before U. torch's GRU cell applies it after U, which is a different function.

    Args:
        dim: Width d of a label's state.
        steps: Propagation steps.
    """

    def __init__(self, dim: int, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.message = nn.Linear(2 * dim, 3 * dim)
        self.gates = nn.Linear(dim, 2 * dim)
        self.candidate = nn.Linear(dim, dim)

    def forward(self, states: Tensor, adjacency: Tensor) -> Tensor:
        """Return states (B, K, d) after all steps; adjacency (K, K), rows to columns."""
        for _ in range(self.steps):
            messages = torch.cat([adjacency @ states, adjacency.T @ states], dim=2)
            for_update, for_reset, for_state = self.message(messages).chunk(3, dim=2)
            update, reset = self.gates(states).chunk(2, dim=2)
            update, reset = torch.sigmoid(for_update + update), torch.sigmoid(for_reset + reset)
            proposed = torch.tanh(for_state + self.candidate(reset * states))
            states = (1 - update) * states + update * proposed
        return states


class PairHead(nn.Module):
    """Logits of the co-occurrence of K(K − 1)/2 label pairs, each with its own classifier.

    Label features are projected and those of a pair concatenated, followed by two layers: d → inner, 2 inner → d with
    ReLU, d → d, then a linear score per pair.

    Args:
        classes: K.
        dim: Width d of a label's feature.
        inner: Width of the projection.
    """

    first: Tensor
    second: Tensor

    def __init__(self, classes: int, dim: int, inner: int) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, offset=1)
        self.register_buffer("first", first, persistent=False)
        self.register_buffer("second", second, persistent=False)
        self.project = nn.Linear(dim, inner)
        self.joint = nn.Linear(2 * inner, dim)
        self.out = nn.Linear(dim, dim)
        self.score = GroupLinear(classes * (classes - 1) // 2, dim)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, pairs), pairs (i, j) with i < j row by row, of label features (B, K, d)."""
        projected = self.project(features)
        both = torch.cat([projected[:, self.first], projected[:, self.second]], dim=2)
        logits: Tensor = self.score(self.out(torch.relu(self.joint(both))))
        return logits

    def targets(self, targets: Tensor) -> Tensor:
        """Return the pairs' targets (B, pairs): y_i y_j, NaN if one is unknown."""
        return targets[:, self.first] * targets[:, self.second]

    def matrix(self, logits: Tensor) -> Tensor:
        """Return the pairs' probabilities (B, K, K), symmetric, 0 on the diagonal."""
        classes = int(self.second.max()) + 1 if len(self.second) else 1
        upper = logits.new_zeros(len(logits), classes, classes)
        upper[:, self.first, self.second] = logits.sigmoid()
        return upper + upper.transpose(1, 2)


def contrastive_loss(features: Tensor, targets: Tensor) -> Tensor:
    """Return the mean of 1 − cos of a label's features if both photos have the label, and of 1 + cos otherwise.

    Pairs are mined as in the released code: if n pairs have a label in both photos, 2n random and the n most similar
    pairs with it in one photo are used, and as many with it in none; if n is 0, all of them.

    Args:
        features: Label features (B, K, d).
        targets: (B, K) in [0, 1]; from 1/2 a photo has the label; unknown labels (NaN) form no pairs.
    """
    first, second = torch.triu_indices(len(targets), len(targets), offset=1, device=targets.device)
    cosines = F.cosine_similarity(features[first], features[second], dim=2)
    has, lacks = targets >= 0.5, targets < 0.5
    alike = (1 - cosines)[has[first] & has[second]]
    one = (1 + cosines)[(has[first] & lacks[second]) | (lacks[first] & has[second])]
    none = (1 + cosines)[lacks[first] & lacks[second]]
    parts = [alike, *(_mined(losses, len(alike)) if len(alike) else losses for losses in (one, none))]
    chosen = torch.cat(parts)
    return chosen.mean() if len(chosen) else features.sum() * 0


def _mined(losses: Tensor, count: int) -> Tensor:
    """Return 2 · count random losses and the `count` largest, or fewer if there are not enough."""
    order = torch.randperm(len(losses), device=losses.device)[: 2 * count]
    return torch.cat([losses[order], losses.topk(min(count, len(losses))).values])


def same_label_cosines(features: Tensor) -> Tensor:
    """Return cosines (B, B, K) of each label's features (B, K, d) between photos."""
    unit = F.normalize(features, dim=2)
    return torch.einsum("mkd,nkd->mnk", unit, unit)


def intra_pseudo_labels(together: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Return 1 for unknown labels that probably occur with the photo's known positives; others NaN.

    Args:
        together: Probabilities of pairs (B, K, K).
        targets: (B, K); NaN where unknown.
        margin: Minimum mean pair probability.
    """
    positive = _positive(targets)
    score = torch.einsum("bkj,bj->bk", together, positive)
    return _fill(score, positive.sum(1)[:, None], targets, margin)


def inter_pseudo_labels(features: Tensor, targets: Tensor, margin: float) -> Tensor:
    """Return 1 for unknown labels with features similar to those of photos with the label; others NaN.

    Args:
        features: Label features (B, K, d).
        targets: (B, K); NaN where unknown.
        margin: Minimum mean cosine.
    """
    positive = _positive(targets)
    score = torch.einsum("mnk,nk->mk", same_label_cosines(features), positive)
    return _fill(score, positive.sum(0)[None], targets, margin)


def _positive(targets: Tensor) -> Tensor:
    return (targets.nan_to_num(0) >= 0.5).float()


def _fill(score: Tensor, count: Tensor, targets: Tensor, margin: float) -> Tensor:
    taken = targets.isnan() & (count > 0) & (score / count.clamp_min(1) >= margin)
    return torch.where(taken, 1.0, torch.nan)
