"""Nested cross-validation of `intclip fit`: every fit and choice is repeated inside each outer fold."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from intclip.data.loading import usable_cores
from intclip.data.splitting import stratified_folds
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.post_heads.fusion import probabilities
from intclip.methods.post_heads.heads import fit_heads
from intclip.methods.post_heads.inputs import Inputs

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """One mode ("image", "text" or "both") of all outer folds together.

    Attributes:
        probabilities: (N, K), of each post by heads fitted without it.
        thresholds: (N, K), of these heads.
    """

    probabilities: Array
    thresholds: Array


def nested(
    inputs: Mapping[str, Inputs],
    targets: npt.ArrayLike,
    taxonomy: Taxonomy,
    *,
    folds: int = 5,
    seed: int = 0,
    head: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> dict[str, HeldOut]:
    """Run nested cross-validation of `fit_heads`, with its arguments, by mode.

    Args:
        inputs: "text", "image" or both, N posts each.
        targets: (N, K), 0 or 1.
        taxonomy: The K labels.
        folds: Number of outer folds.
        seed: Seed of the outer folds; inner ones add the fold's number.
        head: Use this head instead of the best one.
        report: Called with completed and total folds.
    """
    target = np.asarray(targets, dtype=np.float64)
    found: dict[str, HeldOut] = {}

    def fold(number: int, train: np.ndarray, test: np.ndarray) -> None:
        learned = {name: channel.take(train) for name, channel in inputs.items()}
        fitted = fit_heads(learned, target[train], taxonomy, seed=seed + number, head=head)
        logits = fitted.logits({name: channel.take(test) for name, channel in inputs.items()})
        for mode, values in logits.items():
            held = found.setdefault(mode, HeldOut(np.zeros(target.shape), np.zeros(target.shape)))
            held.probabilities[test] = probabilities(values, exclusive=taxonomy.exclusive)
            held.thresholds[test] = fitted.thresholds[mode]

    splits = list(stratified_folds(target, folds, seed))
    # The limit of `fit_heads`, for all of them together.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
        for done, _ in enumerate(pool.map(fold, range(1, folds + 1), *zip(*splits, strict=True)), start=1):
            if report is not None:
                report(done, folds)
    return found
