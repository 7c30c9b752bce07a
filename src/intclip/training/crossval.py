"""The fit of `intclip fit` and its nested cross-validation, which repeats every choice inside each outer fold."""

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
from intclip.methods.post_heads.heads import FittedHeads, fit_heads
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


def fit_and_validate(
    inputs: Mapping[str, Inputs],
    targets: npt.ArrayLike,
    taxonomy: Taxonomy,
    *,
    folds: int = 5,
    seed: int = 0,
    head: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> tuple[FittedHeads, dict[str, HeldOut]]:
    """Fit heads to all posts, and repeat it in each outer fold on the posts of the others; all at the same time.

    Args:
        inputs: "text", "image" or both, N posts each.
        targets: (N, K), 0 or 1.
        taxonomy: The K labels.
        folds: Number of outer folds; with 0, nothing is held out.
        seed: Seed of the outer folds; inner ones add the fold's number.
        head: Use this head instead of the best one.
        report: Called with completed and total fits.

    Returns:
        The heads fitted to all posts, and the held-out results by mode.
    """
    target = np.asarray(targets, dtype=np.float64)
    heads: list[FittedHeads] = []
    found: dict[str, HeldOut] = {}

    def fit(number: int, train: np.ndarray, test: np.ndarray) -> None:
        learned = {name: channel.take(train) for name, channel in inputs.items()}
        fitted = fit_heads(learned, target[train], taxonomy, seed=seed + number, head=head)
        if number == 0:
            heads.append(fitted)
            return
        logits = fitted.logits({name: channel.take(test) for name, channel in inputs.items()})
        for mode, values in logits.items():
            held = found.setdefault(mode, HeldOut(np.zeros(target.shape), np.zeros(target.shape)))
            held.probabilities[test] = probabilities(values, exclusive=taxonomy.exclusive)
            held.thresholds[test] = fitted.thresholds[mode]

    everything, none = np.arange(len(target)), np.arange(0)
    splits = [(everything, none), *(stratified_folds(target, folds, seed) if folds else ())]
    # The limit of `fit_heads`, for all of them together.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cores()) as pool:
        for done, _ in enumerate(pool.map(fit, range(len(splits)), *zip(*splits, strict=True)), start=1):
            if report is not None:
                report(done, len(splits))
    return heads[0], found
