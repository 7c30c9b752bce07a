"""How far photo and words of a post contradict each other."""

from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.posts.heads import Array


def conflict(photo: npt.NDArray[np.floating[Any]], words: npt.NDArray[np.floating[Any]], *, exclusive: bool) -> Array:
    """Conflict (N,) in [0, 1] of what photos say and what words say: 0 where they agree on every label.

    Of labels that exclude each other it is the Jensen-Shannon divergence of the two distributions, in bits. Else each
    label is a yes or no with a divergence of its own, and the conflict is the largest: one label that the photo is sure
    of and the words deny makes a conflict, however many others both leave out.

        JSD(p, q) = H((p + q) / 2) − (H(p) + H(q)) / 2

    Args:
        photo: (N, K) probabilities, read from the photos alone.
        words: (N, K), read from the words alone.
        exclusive: Whether exactly one label holds, so that rows sum to 1.

    Source: Lin, Divergence measures based on the Shannon entropy, IEEE Trans. Information Theory 37(1), 1991.
    """
    middle = (photo + words) / 2
    if exclusive:
        spread = _information(middle) - (_information(photo) + _information(words)) / 2
        return np.asarray(spread.sum(axis=1).clip(0, 1), dtype=np.float64)
    spread = _entropy(middle) - (_entropy(photo) + _entropy(words)) / 2
    return np.asarray(spread.max(axis=1).clip(0, 1), dtype=np.float64)


def _entropy(share: npt.NDArray[np.floating[Any]]) -> Array:
    """Of a yes or no, in bits."""
    return _information(share) + _information(1 - share)


def _information(share: npt.NDArray[np.floating[Any]]) -> Array:
    from scipy.special import entr

    return np.asarray(entr(share) / np.log(2), dtype=np.float64)
