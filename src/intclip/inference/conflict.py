"""How far photo and words of a post contradict each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Numbers = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Conflict:
    """How far photo and words of a post contradict each other.

    Attributes:
        score: In [0, 1], see `conflict`: 0 where they agree on every label.
        disputed: Labels that one of them holds and the other does not: name to (probability by the photo alone, by the
            words alone), the widest gap first.
    """

    score: float
    disputed: Mapping[str, tuple[float, float]]


def find_conflict(
    names: Sequence[str], photo: tuple[Numbers, Numbers], words: tuple[Numbers, Numbers], *, exclusive: bool
) -> Conflict:
    """Return the conflict of a post.

    Args:
        names: K labels.
        photo: Probabilities (K,) by photo, and their thresholds (K,).
        words: The same by text.
        exclusive: Whether exactly one label applies.
    """
    seen, read = photo[0], words[0]
    score = float(conflict(seen[None], read[None], exclusive=exclusive)[0])
    held = [np.arange(len(p)) == p.argmax() if exclusive else p >= thresholds for p, thresholds in (photo, words)]
    order = np.argsort(-np.abs(seen - read), kind="stable")
    return Conflict(score, {names[k]: (float(seen[k]), float(read[k])) for k in order if held[0][k] != held[1][k]})


def conflict(photo: Numbers, words: Numbers, *, exclusive: bool) -> Array:
    """Return the conflict (N,) in [0, 1] between photos and texts: 0 if they agree on every label.

    For exclusive labels it is the Jensen-Shannon divergence of the two distributions, in bits. Otherwise
    it is the largest divergence of the labels, each a binary variable: one label that the photo is sure of and the text
    denies makes a conflict, however many others are absent in both.

        JSD(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2

    Args:
        photo: (N, K) probabilities by photo.
        words: (N, K) probabilities by text.
        exclusive: Whether exactly one label applies, so that rows sum to 1.

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Information Theory 37(1), 1991.
    """
    middle = (photo + words) / 2
    if exclusive:
        spread = _information(middle) - (_information(photo) + _information(words)) / 2
        return np.asarray(spread.sum(axis=1).clip(0, 1), dtype=np.float64)
    spread = _entropy(middle) - (_entropy(photo) + _entropy(words)) / 2
    return np.asarray(spread.max(axis=1).clip(0, 1), dtype=np.float64)


def _entropy(share: Numbers) -> Array:
    """Entropy of a binary variable, in bits."""
    return _information(share) + _information(1 - share)


def _information(share: Numbers) -> Array:
    from scipy.special import entr

    return np.asarray(entr(share) / np.log(2), dtype=np.float64)
