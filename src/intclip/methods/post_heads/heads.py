"""The fitted heads as torch modules: a channel's scores, and the fusion of scores into logits."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from intclip.labels.taxonomy import Taxonomy
from intclip.methods.post_heads.fusion import fit_logits, fit_sharpness, probabilities
from intclip.methods.post_heads.inputs import Inputs, WordCounts, fit_word_counts
from intclip.methods.post_heads.selection import ANCHORS, Choice, choose_head
from intclip.methods.post_heads.solver import Array, Solver
from intclip.thresholds import SHRINKAGE, tune_threshold

BOTH = "both"
_GRID = tuple(np.arange(0.04, 0.96, 0.02).round(2))


class ChannelHead(nn.Module):
    """Scores of one channel: a weighted sum of kernel values with the labelled posts.

        score(x) = x W + Σ_γ exp(−γ (1 − X x)) A_γ + anchors ∘ c + b

    x is the concatenation of the channel's blocks, each centred and of the same norm; x has norm 1. X holds the
    labelled posts; it is empty if no head of the ensemble has an RBF kernel.

    Args:
        blocks: Names of the channel's blocks, in order.
        labels: Number of labels K.
    """

    linear: Tensor
    posts: Tensor
    gammas: Tensor
    rbf: Tensor
    anchor: Tensor
    bias: Tensor

    def __init__(self, blocks: Sequence[str], labels: int) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        shapes: dict[str, tuple[int, ...]] = {"linear": (0, labels), "posts": (0, 0), "gammas": (0,)}
        shapes |= {"rbf": (0, 0, labels), "anchor": (labels,), "bias": (labels,)}
        shapes |= {f"mean_{name}": (0,) for name in self.blocks}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape))

    def forward(self, blocks: Mapping[str, Tensor], anchors: Tensor) -> Tensor:
        """Return scores (B, K), approximately standardised; 0 before fitting.

        Args:
            blocks: Vectors (B, D) by name.
            anchors: Similarity (B, K) to the labels' sentences.
        """
        scores = anchors * self.anchor + self.bias
        if len(self.linear):
            vectors = self.vectors(blocks)
            scores = scores + vectors @ self.linear
            if len(self.gammas):
                nearness = vectors @ self.posts.T - 1
                for number in range(len(self.gammas)):
                    # Not exp(-γ · distance): with several streams, OpenVINO 2026.4 uses -1 instead of -γ.
                    scores = scores + torch.exp(self.gammas[number] * nearness) @ self.rbf[number]
        return scores

    def vectors(self, blocks: Mapping[str, Tensor]) -> Tensor:
        """Return unit vectors (B, D), whose dot product is the mean of the blocks' centred cosines."""
        parts = [F.normalize(blocks[name] - self.get_buffer(f"mean_{name}"), dim=1) for name in self.blocks]
        joined = torch.cat(parts, dim=1)
        return joined.div(len(parts) ** 0.5)


class Fusion(nn.Module):
    """Calibrated logits from the scores of one or both channels: Σ_c w_ck s_ck + b_k.

    Args:
        channels: Number of channels C.
        labels: Number of labels K.
    """

    weights: Tensor
    bias: Tensor

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.ones(channels, labels) / channels)
        self.register_buffer("bias", torch.zeros(labels))

    def forward(self, scores: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K) of C scores (B, K)."""
        weighted = [each * weight for each, weight in zip(scores, self.weights, strict=True)]
        return torch.stack(weighted).sum(dim=0) + self.bias


class LateFusion(nn.Module):
    """One head per channel, and one fusion per mode; missing channels are not imputed.

    Args:
        blocks: Names of blocks by channel ("image", "text").
        labels: Number of labels K.
    """

    def __init__(self, blocks: Mapping[str, Sequence[str]], labels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: ChannelHead(blocks[name], labels) for name in sorted(blocks)})
        self.fusions = nn.ModuleDict({name: Fusion(1, labels) for name in self.heads})
        if len(self.heads) > 1:
            self.fusions[BOTH] = Fusion(len(self.heads), labels)

    def forward(self, inputs: Mapping[str, tuple[Mapping[str, Tensor], Tensor]]) -> dict[str, Tensor]:
        """Return logits (B, K) by mode: each available channel, and both.

        Args:
            inputs: Blocks and anchors by channel.
        """
        scores = {name: head(*inputs[name]) for name, head in self.heads.items() if name in inputs}
        logits = {name: self.fusions[name]([score]) for name, score in scores.items()}
        if len(scores) > 1:
            logits[BOTH] = self.fusions[BOTH](list(scores.values()))
        return logits


class FittedHeads:
    """Result of `fit_heads`.

    Attributes:
        module: The fitted heads.
        counts: Vocabularies of the texts.
        thresholds: Thresholds (K,) by mode ("image", "text", "both").
        choices: Selection of each channel's head.
    """

    def __init__(
        self,
        module: LateFusion,
        counts: WordCounts,
        thresholds: Mapping[str, Array],
        choices: Mapping[str, Choice],
    ) -> None:
        self.module, self.counts, self.thresholds, self.choices = module, counts, thresholds, choices

    @torch.no_grad()
    def logits(self, inputs: Mapping[str, Inputs]) -> dict[str, Array]:
        """Return logits (M, K) by mode, of posts that all have these channels."""
        found = self.module({name: as_tensors(channel, self.counts) for name, channel in inputs.items()})
        return {mode: logits.double().numpy() for mode, logits in found.items()}


def as_tensors(inputs: Inputs, counts: WordCounts) -> tuple[dict[str, Tensor], Tensor]:
    """Convert blocks (including word counts) and anchors to tensors for a head."""
    counted = {} if inputs.terms is None else counts(inputs.terms, len(inputs))
    blocks = {name: torch.from_numpy(block) for name, block in (inputs.blocks | counted).items()}
    return blocks, torch.from_numpy(inputs.anchors)


def fit_heads(
    inputs: Mapping[str, Inputs], targets: npt.ArrayLike, taxonomy: Taxonomy, *, seed: int = 0, head: str | None = None
) -> FittedHeads:
    """Fit heads, calibration, fusion and thresholds, tuned only on held-out scores.

    Args:
        inputs: "text", "image" or both, N posts each, in the same order.
        targets: (N, K), 0 or 1; exactly one 1 per row if the taxonomy is exclusive.
        taxonomy: The K labels.
        seed: Seed of the folds.
        head: Use this head instead of the best one; a key of `solver.GRIDS`, "anchors" or "ensemble".
    """
    target = np.asarray(targets, dtype=np.float64)
    terms = inputs["text"].terms if "text" in inputs else None
    counts = WordCounts() if terms is None else fit_word_counts(terms)
    tensors = {name: as_tensors(inputs[name], counts) for name in sorted(inputs)}
    module = LateFusion({name: list(blocks) for name, (blocks, _) in tensors.items()}, len(taxonomy))
    neighbours = siblings(taxonomy)
    choices: dict[str, Choice] = {}
    # Several threads wait for each other at every product of these small matrices.
    with threadpool_limits(1, user_api="blas"):
        for name, (blocks, anchors) in tensors.items():
            channel = module.heads[name]
            assert isinstance(channel, ChannelHead)
            choices[name] = _fit_channel(channel, blocks, anchors.double().numpy(), target, neighbours, seed, head)
    modes = {name: [choice.scores] for name, choice in choices.items()}
    if len(modes) > 1:
        modes[BOTH] = [choice.scores for choice in choices.values()]
    thresholds = {}
    for mode, scores in modes.items():
        fusion = module.fusions[mode]
        assert isinstance(fusion, Fusion)
        thresholds[mode] = _fit_fusion(fusion, np.stack(scores), target, exclusive=taxonomy.exclusive)
    return FittedHeads(module.eval(), counts, thresholds, choices)


def siblings(taxonomy: Taxonomy) -> Array:
    """Return which labels (K, K) share a parent at the next level; no label is its own sibling."""
    if len(taxonomy.levels) < 2:
        return np.zeros((len(taxonomy), len(taxonomy)))
    member = taxonomy.membership(1).astype(np.float64)
    together = member @ member.T
    np.fill_diagonal(together, 0)
    return together


def _fit_channel(
    channel: ChannelHead,
    blocks: Mapping[str, Tensor],
    anchors: Array,
    targets: Array,
    neighbours: Array,
    seed: int,
    head: str | None,
) -> Choice:
    """Choose heads by cross-validation, fit them on all posts, and combine them into one sum of kernels."""
    _set(channel, **{f"mean_{name}": block.mean(dim=0) for name, block in blocks.items()})
    vectors = channel.vectors(blocks)
    rows = vectors.double().numpy()
    cosines = rows @ rows.T
    choice = choose_head(cosines, anchors, targets, neighbours, seed=seed, head=head)
    labels = targets.shape[1]
    solver = Solver(cosines, targets, neighbours)
    alphas: dict[float, Array] = {}
    bias, anchor = np.zeros(labels), np.zeros(labels)
    for name, share in choice.votes.items():
        found = choice.candidates[name]
        scale = share / found.deviation
        bias -= scale * found.mean
        if name == ANCHORS:
            anchor = scale
            continue
        dual = solver.fit(name, found.params)
        bias += scale * dual.bias
        alphas[dual.gamma] = alphas.get(dual.gamma, 0) + scale * dual.alpha
    linear = rows.T @ alphas.pop(0.0, np.zeros(targets.shape))
    gammas = sorted(alphas)
    rbf = np.stack([alphas[gamma] for gamma in gammas]) if gammas else np.zeros((0, 0, labels))
    posts = vectors if gammas else vectors[:0]
    _set(channel, linear=linear, posts=posts, gammas=np.array(gammas), rbf=rbf, anchor=anchor, bias=bias)
    return choice


def _fit_fusion(fusion: Fusion, scores: Array, targets: Array, *, exclusive: bool) -> Array:
    """Fit a fusion to held-out scores (C, N, K); return its thresholds (K,)."""
    logits = fit_logits(scores, targets)
    sharpness = fit_sharpness(logits(scores), targets) if exclusive else 1.0
    _set(fusion, weights=sharpness * logits.weights, bias=sharpness * logits.bias)
    found = probabilities(sharpness * logits(scores), exclusive=exclusive)
    return tune_threshold(found, targets, grid=_GRID, per_class=True, shrinkage=SHRINKAGE)


def _set(module: nn.Module, **values: Tensor | Array) -> None:
    for name, value in values.items():
        setattr(module, name, torch.as_tensor(value).float().contiguous())
