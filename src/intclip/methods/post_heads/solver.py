"""Heads for few labels; each is a weighted sum of kernel values with the labelled posts.

    score(x) = Σ_i α_i k(x, x_i) + b,   k linear (x·x') or RBF exp(−γ (1 − x·x')),

on unit vectors x, so prototypes, ridge, logistic regression, support vectors, kernel ridge and label graphs have the
same format. Rows of a class without a positive are zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Params = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class DualHead:
    """A fitted head.

    Attributes:
        gamma: Parameter of the RBF kernel; 0 for the linear kernel.
        alpha: (N, K) weights of the labelled posts.
        bias: (K,).
    """

    gamma: float
    alpha: Array
    bias: Array

    def scores(self, cosines: Array) -> Array:
        """Return scores (M, K) of posts from their dot products (M, N) with the labelled ones."""
        return np.asarray(kernel(cosines, self.gamma) @ self.alpha + self.bias, dtype=np.float64)


GRIDS: Mapping[str, tuple[Params, ...]] = {
    "prototypes": ((),),
    "ridge": tuple((("penalty", p),) for p in (0.3, 1.0, 3.0)),
    "logistic": tuple((("C", c),) for c in (10.0,)),
    "svm": tuple((("gamma", 2.0), ("C", c)) for c in (1.0,)),
    "kernel": tuple((("gamma", g), ("penalty", p)) for g in (1.0, 2.0, 4.0) for p in (0.1, 0.3, 1.0)),
    "graph": tuple((("gamma", 2.0), ("penalty", 0.3), ("share", s)) for s in (0.1, 0.2, 0.4)),
}
"""Settings of each head for inner cross-validation."""
SLOW = ("logistic", "svm")
"""Heads that are fitted class by class."""
SLOW_LIMIT = 30_000
"""Posts × classes from which these heads are left out."""


def kernel(cosines: Array, gamma: float) -> Array:
    """Return kernel values for dot products of unit vectors; gamma 0 is the linear kernel."""
    return np.exp(-gamma * (1 - cosines)) if gamma else cosines


def fit_head(name: str, cosines: Array, targets: Array, neighbours: Array, params: Params) -> DualHead:
    """Fit one head.

    Args:
        name: A key of `GRIDS`.
        cosines: (N, N) dot products of the labelled posts.
        targets: (N, K), 0 or 1.
        neighbours: (K, K), 1 for classes that are siblings in the taxonomy; all 0 without a hierarchy.
        params: One of the head's settings.
    """
    chosen = dict(params)
    count = np.maximum(targets.sum(axis=0), 1)
    if name == "prototypes":
        alpha = targets / count - 1 / len(targets)
        return DualHead(0.0, alpha * (targets.sum(axis=0) > 0), np.zeros(targets.shape[1]))
    if name == "logistic":
        return _logistic(cosines, targets, chosen["C"])
    if name == "svm":
        return _svm(cosines, targets, chosen["gamma"], chosen["C"])
    gamma = chosen.get("gamma", 0.0)
    dual = _ridge(kernel(cosines, gamma), targets, gamma, chosen["penalty"])
    if name == "graph":
        smooth = np.eye(targets.shape[1]) + chosen["share"] * label_graph(targets, neighbours)
        return DualHead(gamma, dual.alpha @ smooth, dual.bias @ smooth)
    return dual


def label_graph(targets: Array, neighbours: Array) -> Array:
    """Return the shares of a class's score that are passed to others: (K, K), columns sum to at most 1.

    Co-occurrence of labels, smoothed by five pseudo-posts per class; siblings of the taxonomy occur together in one of
    them. (ML-GCN's conditional probabilities, Chen et al., CVPR 2019, without its threshold.)
    """
    together = targets.T @ targets
    np.fill_diagonal(together, 0)
    graph = (together + neighbours) / (targets.sum(axis=0) + 5)[:, None]
    return np.asarray(graph / np.maximum(graph.sum(axis=0), 1), dtype=np.float64)


def _ridge(gram: Array, targets: Array, gamma: float, penalty: float) -> DualHead:
    bias = targets.mean(axis=0)
    alpha = np.linalg.solve(gram + penalty * np.eye(len(gram)), targets - bias)
    return DualHead(gamma, alpha * (targets.sum(axis=0) > 0), bias)


def _logistic(cosines: Array, targets: Array, strength: float) -> DualHead:
    """Fit balanced logistic regression on the posts' coordinates in their span."""
    from sklearn.linear_model import LogisticRegression

    values, vectors = np.linalg.eigh(cosines)
    kept = values > 1e-6 * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    coordinates = vectors * np.sqrt(values)

    def one(target: Array) -> tuple[Array, float]:
        model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500).fit(coordinates, target > 0)
        return np.asarray((vectors / np.sqrt(values)) @ model.coef_[0]), float(model.intercept_[0])

    return _by_class(one, 0.0, targets)


def _svm(cosines: Array, targets: Array, gamma: float, strength: float) -> DualHead:
    from sklearn.svm import SVC

    gram = kernel(cosines, gamma)

    def one(target: Array) -> tuple[Array, float]:
        model = SVC(C=strength, kernel="precomputed", class_weight="balanced").fit(gram, target > 0)
        alpha = np.zeros(len(gram))
        alpha[model.support_] = model.dual_coef_[0]
        return alpha, float(model.intercept_[0])

    return _by_class(one, gamma, targets)


def _by_class(one: Any, gamma: float, targets: Array) -> DualHead:
    alpha, bias = np.zeros(targets.shape), np.zeros(targets.shape[1])
    for k in range(targets.shape[1]):
        if 0 < targets[:, k].sum() < len(targets):
            alpha[:, k], bias[k] = one(targets[:, k])
    return DualHead(gamma, alpha, bias)
