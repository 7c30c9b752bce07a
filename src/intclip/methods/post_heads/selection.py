"""Selection of heads: inner cross-validation of every head and setting, and an ensemble of the best."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intclip.data.splitting import stratified_folds
from intclip.methods.post_heads.solver import GRIDS, SLOW, SLOW_LIMIT, Array, Kernels, Params, Solver
from intclip.metrics import mean_average_precision

ANCHORS, ENSEMBLE = "anchors", "ensemble"
INNER_FOLDS = 5
VOTES = 10
MOST_ANCHOR_VOTES = 5
"""Maximum weight of class sentences, which may have been written with knowledge of these posts."""
LARGE = 1500
"""From this number of posts, grids are reduced to their middle, and three folds are used."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A head with its best setting.

    Attributes:
        name: A key of `GRIDS`, or "anchors".
        params: The setting.
        scores: (N, K) held-out scores, standardised by class.
        mean: (K,) of the raw scores.
        deviation: (K,) of the raw scores.
        value: mAP of the held-out scores.
    """

    name: str
    params: Params
    scores: Array
    mean: Array
    deviation: Array
    value: float


@dataclass(frozen=True, eq=False)
class Choice:
    """The selected head.

    Attributes:
        name: "ensemble", or the name of one candidate.
        votes: Share of each candidate by name; they sum to 1.
        candidates: All candidates by name.
        scores: (N, K) held-out scores of the selected head.
        ranking: mAP on held-out posts by name, in descending order.
    """

    name: str
    votes: dict[str, float]
    candidates: dict[str, Candidate]
    scores: Array
    ranking: dict[str, float]


def choose_head(
    cosines: Array, anchors: Array, targets: Array, neighbours: Array, *, seed: int = 0, head: str | None = None
) -> Choice:
    """Compare heads by cross-validation and combine the best.

    Args:
        cosines: (N, N) dot products of the posts.
        anchors: (N, K) similarities with the class sentences.
        targets: (N, K), 0 or 1.
        neighbours: (K, K) siblings in the taxonomy.
        seed: Seed of the folds.
        head: Use this head instead of the best one.
    """
    candidates = {ANCHORS: _candidate(ANCHORS, (), anchors, targets)}
    settings = [(name, params) for name in GRIDS for params in _settings(name, targets)]
    held_out = _held_out(settings, cosines, targets, neighbours, seed)
    for (name, params), scores in zip(settings, held_out, strict=True):
        found = _candidate(name, params, scores, targets)
        if name not in candidates or found.value > candidates[name].value:
            candidates[name] = found
    votes = _elect(candidates, targets)
    joined = sum((share * candidates[name].scores for name, share in votes.items()), np.zeros(targets.shape))
    values = {name: found.value for name, found in candidates.items()} | {ENSEMBLE: _value(joined, targets)}
    ranking = dict(sorted(values.items(), key=lambda item: -item[1]))
    winner = head or next(iter(ranking))
    if winner != ENSEMBLE:
        votes, joined = {winner: 1.0}, candidates[winner].scores
    return Choice(winner, votes, candidates, joined, ranking)


def _settings(name: str, targets: Array) -> tuple[Params, ...]:
    """Return the settings of a head to compare, fewer for many posts."""
    grid = GRIDS[name]
    if name in SLOW and targets.size > SLOW_LIMIT:
        return ()
    if len(targets) <= LARGE:
        return grid
    if name == "kernel":
        return tuple(params for params in grid if dict(params)["gamma"] == 2.0)
    return grid[len(grid) // 2 :][:1]


def _held_out(
    settings: Sequence[tuple[str, Params]], cosines: Array, targets: Array, neighbours: Array, seed: int
) -> list[Array]:
    """Return scores (N, K) of each setting, of posts by heads fitted without them."""
    scores = [np.zeros(targets.shape) for _ in settings]
    for train, test in stratified_folds(targets, 3 if len(targets) > LARGE else INNER_FOLDS, seed):
        solver = Solver(cosines[np.ix_(train, train)], targets[train], neighbours)
        kernels = Kernels(cosines[np.ix_(test, train)])
        for found, (name, params) in zip(scores, settings, strict=True):
            found[test] = solver.fit(name, params).scores(kernels)
    return scores


def _candidate(name: str, params: Params, raw: Array, targets: Array) -> Candidate:
    mean, deviation = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
    scores = (raw - mean) / deviation
    return Candidate(name, params, scores, mean, deviation, _value(scores, targets))


def _elect(candidates: dict[str, Candidate], targets: Array) -> dict[str, float]:
    """Select greedily with replacement (Caruana et al., Ensemble selection, ICML 2004), starting with the two best."""
    learned = sorted((c for c in candidates.values() if c.name != ANCHORS), key=lambda found: -found.value)
    votes = {found.name: 1 for found in learned[:2]}
    total = sum((found.scores for found in learned[:2]), np.zeros(targets.shape))
    while sum(votes.values()) < VOTES:
        options = [c for c in candidates.values() if c.name != ANCHORS or votes.get(ANCHORS, 0) < MOST_ANCHOR_VOTES]
        best = max(options, key=lambda found: _value(total + found.scores, targets))
        votes[best.name] = votes.get(best.name, 0) + 1
        total = total + best.scores
    return {name: count / VOTES for name, count in votes.items()}


def _value(scores: Array, targets: Array) -> float:
    """Return mAP; 0 if no label has both positives and negatives."""
    found = mean_average_precision(scores, targets)
    return 0.0 if np.isnan(found) else found
