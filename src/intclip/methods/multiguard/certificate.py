"""Guarantees from votes under noise: Clopper–Pearson bounds, and the certified number of true labels in the top k.

Jia, Qu, Gong: MultiGuard: Provably Robust Multi-label Classification against Adversarial Examples, NeurIPS 2022,
Theorem 1, by which at least e true labels stay in the top k for every change of the photo with L2 norm below R if

    max(Φ⁻(a_e), max_u k'/u · Φ⁻((a_e + … + a_{e+u−1}) / k'))
        > min(Φ⁺(b_s), min_v k'/v · Φ⁺((b_{s−v+1} + … + b_s) / k'))

with lower bounds a_1 ≥ a_2 ≥ … of the true labels' vote probabilities, upper bounds b_1 ≥ b_2 ≥ … of the others',
s = k − e + 1, and Φ^∓(p) = Φ(Φ⁻¹(p) ∓ R/σ).
"""

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm

Array = npt.NDArray[np.float64]


def clopper_pearson(votes: npt.ArrayLike, n: int, alpha: float) -> tuple[Array, Array]:
    """Return one-sided bounds of vote probabilities, each wrong with probability at most `alpha`.

    Args:
        votes: Number of votes for each label (K,), of n.
        n: Number of noisy copies.
        alpha: In (0, 1); divide it by K for bounds that hold jointly.

    Returns:
        Lower and upper bounds (K,).
    """
    counts = np.asarray(votes, dtype=np.float64)
    # The beta distribution is undefined for no votes and for all votes; these bounds are exact.
    lower = np.where(counts > 0, beta.ppf(alpha, np.maximum(counts, 1), n - counts + 1), 0.0)
    upper = np.where(counts < n, beta.ppf(1 - alpha, counts + 1, np.maximum(n - counts, 1)), 1.0)
    return lower, upper


def certified_overlap(
    lower: npt.ArrayLike, upper: npt.ArrayLike, true: npt.ArrayLike, *, k: int, votes: int, sigma: float, radius: float
) -> int:
    """Return the number of true labels that certainly stay in the top k under any change of norm below `radius`.

    Args:
        lower: Lower bounds of vote probabilities (K,).
        upper: Upper bounds (K,).
        true: True labels (K,), bool.
        k: Number of labels predicted by the smoothed classifier.
        votes: k': number of votes of each noisy copy.
        sigma: Standard deviation of the noise.
        radius: R, in the units of the noise.
    """
    mask = np.asarray(true, dtype=bool)
    inside = np.sort(np.asarray(lower, dtype=np.float64)[mask])[::-1]
    outside = np.sort(np.asarray(upper, dtype=np.float64)[~mask])[::-1]
    for count in range(min(len(inside), k), 0, -1):
        if _holds(inside, outside, count, k, votes, radius / sigma):
            return count
    return 0


def certified_radius(
    lower: npt.ArrayLike, upper: npt.ArrayLike, true: npt.ArrayLike, *, k: int, votes: int, sigma: float, overlap: int
) -> float:
    """Return the largest radius at which at least `overlap` true labels certainly stay; 0 if there is none.

    Args:
        lower: As in `certified_overlap`.
        upper: As in `certified_overlap`.
        true: As in `certified_overlap`.
        k: As in `certified_overlap`.
        votes: As in `certified_overlap`.
        sigma: As in `certified_overlap`.
        overlap: At least 1.
    """

    def stays(radius: float) -> bool:
        sure = certified_overlap(lower, upper, true, k=k, votes=votes, sigma=sigma, radius=radius)
        return sure >= overlap

    if not stays(0.0):
        return 0.0
    # The guarantee decreases with the radius; beyond 20 σ no probability below 1 − 1e-15 gives one.
    low, high = 0.0, 20.0 * sigma
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if stays(middle) else (low, middle)
    return low


def _holds(inside: Array, outside: Array, count: int, k: int, votes: int, shift: float) -> bool:
    rank = k - count + 1
    if rank > len(outside):  # fewer other labels than places: the true ones cannot be displaced
        return True
    missing = np.cumsum(inside[count - 1 :])
    sizes = np.arange(1, len(missing) + 1)
    least = max(_moved(inside[count - 1 : count], -shift)[0], (votes / sizes * _moved(missing / votes, -shift)).max())
    pushing = np.cumsum(outside[:rank][::-1])
    sizes = np.arange(1, rank + 1)
    most = min(_moved(outside[rank - 1 : rank], shift)[0], (votes / sizes * _moved(pushing / votes, shift)).min())
    return bool(least > most)


def _moved(chances: Array, shift: float) -> Array:
    """Return Φ(Φ⁻¹(p) + shift), the Neyman–Pearson bound of a probability after a change of the photo."""
    moved: Array = norm.cdf(norm.ppf(np.clip(chances, 0.0, 1.0)) + shift)
    return moved
