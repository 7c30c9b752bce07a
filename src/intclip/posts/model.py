"""A model of posts: one calibrated channel for words, one for photos, and their late fusion with a weight a class.

Each channel has its own logits, thresholds and calibration, so a post without photo or without words is read by the
channel it has; nothing stands in for what is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.labels.taxonomy import Taxonomy
from intclip.posts.encoders import Raw
from intclip.posts.features import Blocks, fit_blocks
from intclip.posts.fusion import Logits, fit_logits, fit_sharpness, probabilities
from intclip.posts.heads import Array, fit_head, kernel
from intclip.posts.selection import ANCHORS, Choice, choose_head
from intclip.thresholds import tune_threshold

Mode = Literal["text", "image", "both"]
SHRINKAGE = 10.0
"""Imagined positives that vote for the common threshold; see `tune_threshold`."""
_GRID = tuple(np.arange(0.04, 0.96, 0.02).round(2))


@dataclass(frozen=True, eq=False)
class Channel:
    """A fitted channel.

    Attributes:
        blocks: From raw embeddings to unit vectors.
        posts: (N, d) unit vectors of the labelled posts.
        weights: Kernel's gamma to (N, K) weights of the labelled posts, all heads joined.
        bias: (K,).
        anchor: (K,) weights of the similarities with the class sentences.
        votes: Head to its share in the ensemble.
        ranking: Head to its mean average precision in inner cross-validation.
    """

    blocks: Blocks
    posts: npt.NDArray[np.float32]
    weights: Mapping[float, Array]
    bias: Array
    anchor: Array
    votes: Mapping[str, float]
    ranking: Mapping[str, float]

    def scores(self, raw: Raw) -> Array:
        """Standardised scores (M, K) of posts, not yet calibrated."""
        cosines = (self.blocks.transform(raw) @ self.posts.T).astype(np.float64)
        total = raw.anchors * self.anchor + self.bias
        for gamma, alpha in self.weights.items():
            total = total + kernel(cosines, gamma) @ alpha
        return np.asarray(total, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Decision:
    """From scores of one or two channels to probabilities and yes or no.

    Attributes:
        logits: One weight a channel and class.
        sharpness: Of the softmax where classes exclude each other; None elsewhere.
        thresholds: (K,).
    """

    logits: Logits
    sharpness: float | None
    thresholds: Array

    def __call__(self, scores: Array) -> Array:
        """Probabilities (M, K) of scores (C, M, K)."""
        return probabilities(self.logits(scores), self.sharpness)


@dataclass(frozen=True, eq=False)
class PostModel:
    """What `fit_posts` learned.

    Attributes:
        taxonomy: The K labels.
        exclusive: Whether exactly one label holds.
        channels: "text", "image" or both.
        decisions: Mode ("text", "image", "both") to its calibration and thresholds.
    """

    taxonomy: Taxonomy
    exclusive: bool
    channels: Mapping[str, Channel]
    decisions: Mapping[str, Decision]
    info: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, raw: Mapping[str, Raw]) -> dict[str, Array]:
        """Scores (M, K) of each channel that is there."""
        return {name: self.channels[name].scores(raw[name]) for name in self.channels if name in raw}

    def probabilities(self, raw: Mapping[str, Raw]) -> Array:
        """Probabilities (M, K) of posts that all have these channels."""
        scores = self.scores(raw)
        return self.decisions[mode_of(scores)](np.stack([scores[name] for name in sorted(scores)]))


def mode_of(channels: Mapping[str, Any]) -> Mode:
    """Mode that the channels at hand make.

    Raises:
        ValueError: There is none.
    """
    if "text" in channels:
        return "both" if "image" in channels else "text"
    if "image" not in channels:
        raise ValueError("a post has words, a photo, or both")
    return "image"


def fit_posts(
    raw: Mapping[str, Raw],
    targets: npt.ArrayLike,
    taxonomy: Taxonomy,
    *,
    exclusive: bool = False,
    seed: int = 0,
    head: str | None = None,
) -> PostModel:
    """Fit heads, calibration, fusion and thresholds; every score they are tuned on is held out.

    Args:
        raw: "text", "image" or both, N posts each, in one order.
        targets: (N, K), 0 or 1.
        taxonomy: The K labels.
        exclusive: Whether exactly one label holds for a post.
        seed: Of the folds.
        head: Take this head in place of the best one.
    """
    target = np.asarray(targets, dtype=np.float64)
    neighbours = siblings(taxonomy)
    channels: dict[str, Channel] = {}
    held_out: dict[str, Array] = {}
    for name in sorted(raw):
        channels[name], held_out[name] = _fit_channel(raw[name], target, neighbours, seed, head)
    decisions = {name: _decide(scores[None], target, exclusive) for name, scores in held_out.items()}
    if len(held_out) == 2:
        decisions["both"] = _decide(np.stack([held_out[name] for name in sorted(held_out)]), target, exclusive)
    return PostModel(taxonomy, exclusive, channels, decisions)


def siblings(taxonomy: Taxonomy) -> Array:
    """Which classes (K, K) have a parent in common on the next level; no class is its own sibling."""
    if len(taxonomy.levels) < 2:
        return np.zeros((len(taxonomy), len(taxonomy)))
    member = taxonomy.membership(1).astype(np.float64)
    together = member @ member.T
    np.fill_diagonal(together, 0)
    return together


def _fit_channel(raw: Raw, targets: Array, neighbours: Array, seed: int, head: str | None) -> tuple[Channel, Array]:
    blocks, posts = fit_blocks(raw)
    cosines = (posts @ posts.T).astype(np.float64)
    choice = choose_head(cosines, raw.anchors.astype(np.float64), targets, neighbours, seed=seed, head=head)
    weights, bias, anchor = _join(choice, cosines, targets, neighbours)
    return Channel(blocks, posts, weights, bias, anchor, choice.votes, choice.ranking), choice.scores


def _join(choice: Choice, cosines: Array, targets: Array, neighbours: Array) -> tuple[dict[float, Array], Array, Array]:
    """The chosen heads, fitted on all posts, as one sum of kernels."""
    classes = targets.shape[1]
    weights: dict[float, Array] = {}
    bias, anchor = np.zeros(classes), np.zeros(classes)
    for name, share in choice.votes.items():
        found = choice.candidates[name]
        scale = share / found.deviation
        bias -= scale * found.mean
        if name == ANCHORS:
            anchor = scale
            continue
        dual = fit_head(name, cosines, targets, neighbours, found.params)
        bias += scale * dual.bias
        weights[dual.gamma] = weights.get(dual.gamma, 0) + scale * dual.alpha
    return weights, bias, anchor


def _decide(scores: Array, targets: Array, exclusive: bool) -> Decision:
    logits = fit_logits(scores, targets)
    values = logits(scores)
    sharpness = fit_sharpness(values, targets) if exclusive else None
    found = probabilities(values, sharpness)
    thresholds = tune_threshold(found, targets, grid=_GRID, per_class=True, shrinkage=SHRINKAGE)
    return Decision(logits, sharpness, thresholds)
