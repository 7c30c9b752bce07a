"""Heads for few labels; each is a weighted sum of kernel values with the labelled posts.

    score(x) = Σ_i α_i k(x, x_i) + b,   k linear (x·x') or RBF exp(−γ (1 − x·x')),

on unit vectors x, so prototypes, ridge, logistic regression, support vectors, kernel ridge and label graphs have the
same format. Rows of a class without a positive are zero.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular

Array = npt.NDArray[np.float64]
Params = tuple[tuple[str, float], ...]

_JITTER = 1e-10
"""Added to squared norms of at most 1: makes dot products of dependent vectors, and of zeros, positive definite."""


class Kernels:
    """Kernel values of posts, computed once for each γ.

    Args:
        cosines: (M, N) dot products of unit vectors.
    """

    def __init__(self, cosines: Array) -> None:
        self.cosines = cosines
        self._found: dict[float, Array] = {0.0: cosines}

    def __call__(self, gamma: float) -> Array:
        """Return kernel values (M, N); γ = 0 is the linear kernel."""
        if gamma not in self._found:
            self._found[gamma] = np.exp(-gamma * (1 - self.cosines))
        return self._found[gamma]


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

    def scores(self, kernels: Kernels) -> Array:
        """Return scores (M, K) of posts from their kernels (M, N) with the labelled ones."""
        return np.asarray(kernels(self.gamma) @ self.alpha + self.bias, dtype=np.float64)


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


class Solver:
    """Fits heads to the same labelled posts; what several of them need is computed once.

    Args:
        cosines: (N, N) dot products of the posts.
        targets: (N, K), 0 or 1.
        neighbours: (K, K), 1 for classes that are siblings in the taxonomy; all 0 without a hierarchy.
    """

    def __init__(self, cosines: Array, targets: Array, neighbours: Array) -> None:
        self._kernels, self._targets, self._neighbours = Kernels(cosines), targets, neighbours
        self._ridges: dict[tuple[float, float], DualHead] = {}

    def fit(self, name: str, params: Params) -> DualHead:
        """Fit one head.

        Args:
            name: A key of `GRIDS`.
            params: One of the head's settings.
        """
        chosen, targets = dict(params), self._targets
        if name == "prototypes":
            count = targets.sum(axis=0)
            alpha = targets / np.maximum(count, 1) - 1 / len(targets)
            return DualHead(0.0, alpha * (count > 0), np.zeros(targets.shape[1]))
        if name == "logistic":
            return self._logistic(chosen["C"])
        if name == "svm":
            return self._svm(chosen["gamma"], chosen["C"])
        dual = self._ridge(chosen.get("gamma", 0.0), chosen["penalty"])
        if name == "graph":
            smooth = np.eye(targets.shape[1]) + chosen["share"] * label_graph(targets, self._neighbours)
            return DualHead(dual.gamma, dual.alpha @ smooth, dual.bias @ smooth)
        return dual

    def _ridge(self, gamma: float, penalty: float) -> DualHead:
        if (gamma, penalty) not in self._ridges:
            bias = self._targets.mean(axis=0)
            factor = _factor(self._kernels(gamma), penalty), True
            alpha = cho_solve(factor, self._targets - bias, check_finite=False)
            found = DualHead(gamma, alpha * (self._targets.sum(axis=0) > 0), bias)
            self._ridges[gamma, penalty] = found
        return self._ridges[gamma, penalty]

    def _logistic(self, strength: float) -> DualHead:
        """Fit balanced logistic regression on the posts' coordinates in their span."""
        from sklearn.linear_model import LogisticRegression

        root = self._root

        def one(target: npt.NDArray[np.bool_]) -> tuple[Array, float]:
            model = LogisticRegression(C=strength, class_weight="balanced", max_iter=500).fit(root, target)
            return solve_triangular(root, model.coef_[0], trans="T", lower=True), float(model.intercept_[0])

        return self._by_class(one, 0.0)

    @cached_property
    def _root(self) -> Array:
        """Triangular (N, N), whose rows have the posts' dot products."""
        return np.tril(_factor(self._kernels.cosines, _JITTER))

    def _svm(self, gamma: float, strength: float) -> DualHead:
        from sklearn.svm import SVC

        gram = self._kernels(gamma)

        def one(target: npt.NDArray[np.bool_]) -> tuple[Array, float]:
            model = SVC(C=strength, kernel="precomputed", class_weight="balanced").fit(gram, target)
            alpha = np.zeros(len(gram))
            alpha[model.support_] = model.dual_coef_[0]
            return alpha, float(model.intercept_[0])

        return self._by_class(one, gamma)

    def _by_class(self, one: Callable[[npt.NDArray[np.bool_]], tuple[Array, float]], gamma: float) -> DualHead:
        from sklearn import config_context

        targets = self._targets
        alpha, bias = np.zeros(targets.shape), np.zeros(targets.shape[1])
        with config_context(assume_finite=True, skip_parameter_validation=True):
            for k in range(targets.shape[1]):
                if 0 < targets[:, k].sum() < len(targets):
                    alpha[:, k], bias[k] = one(targets[:, k] > 0)
        return DualHead(gamma, alpha, bias)


def label_graph(targets: Array, neighbours: Array) -> Array:
    """Return the shares of a class's score that are passed to others: (K, K), columns sum to at most 1.

    Co-occurrence of labels, smoothed by five pseudo-posts per class; siblings of the taxonomy occur together in one of
    them. (ML-GCN's conditional probabilities, Chen et al., CVPR 2019, without its threshold.)
    """
    together = targets.T @ targets
    np.fill_diagonal(together, 0)
    graph = (together + neighbours) / (targets.sum(axis=0) + 5)[:, None]
    return np.asarray(graph / np.maximum(graph.sum(axis=0), 1), dtype=np.float64)


def _factor(gram: Array, diagonal: float) -> Array:
    """Return the lower Cholesky factor (N, N) of a Gram matrix plus a constant on its diagonal.

    Values above the diagonal have no meaning.
    """
    raised = gram.copy()
    raised.flat[:: len(raised) + 1] += diagonal
    # Transposed, LAPACK needs no copy: the matrix is symmetric.
    factor, _ = cho_factor(raised.T, lower=True, overwrite_a=True, check_finite=False)
    return np.asarray(factor, dtype=np.float64)
