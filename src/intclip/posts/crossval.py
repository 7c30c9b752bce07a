"""Honest figures: everything that is fitted or chosen is fitted and chosen anew inside each outer fold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.labels.taxonomy import Taxonomy
from intclip.metrics import bootstrap_intervals, multilabel_report, singlelabel_intervals, singlelabel_report
from intclip.posts.encoders import Raw
from intclip.posts.heads import Array
from intclip.posts.model import fit_posts
from intclip.posts.selection import deal

F1_KEYS = ("macro_f1", "micro_f1", "samples_f1")


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Outer folds put together.

    Attributes:
        probabilities: Mode to (N, K).
        decisions: Mode to (N, K), by each fold's own thresholds.
    """

    probabilities: dict[str, Array]
    decisions: dict[str, Array]


def nested(
    raw: Mapping[str, Raw],
    targets: npt.ArrayLike,
    taxonomy: Taxonomy,
    *,
    exclusive: bool = False,
    folds: int = 5,
    seed: int = 0,
    head: str | None = None,
    report: Callable[[int, int], None] | None = None,
) -> HeldOut:
    """Nested cross-validation of `fit_posts`, whose arguments these are; `report` is told the folds done."""
    target = np.asarray(targets, dtype=np.float64)
    probabilities: dict[str, Array] = {}
    decisions: dict[str, Array] = {}
    for done, (train, test) in enumerate(deal(target, folds, seed), start=1):
        model = fit_posts(
            {name: channel.take(train) for name, channel in raw.items()},
            target[train],
            taxonomy,
            exclusive=exclusive,
            seed=seed + done,
            head=head,
        )
        for mode in model.decisions:
            read = {name: channel.take(test) for name, channel in raw.items() if mode in (name, "both")}
            found = model.probabilities(read)
            chosen = found >= model.decisions[mode].thresholds
            probabilities.setdefault(mode, np.zeros(target.shape))[test] = found
            decisions.setdefault(mode, np.zeros(target.shape))[test] = chosen
        if report is not None:
            report(done, folds)
    return HeldOut(probabilities, decisions)


def figures(
    probabilities: Array, decisions: Array, targets: npt.ArrayLike, *, exclusive: bool = False, draws: int = 1000
) -> dict[str, dict[str, float]]:
    """Metric to {"value", "low", "high"} with 95 % bootstrap intervals.

    Args:
        probabilities: (N, K), held out.
        decisions: (N, K), 0 or 1; not looked at where classes exclude each other.
        targets: (N, K), 0 or 1.
        exclusive: Accuracy and macro F1 in place of the multi-label metrics.
        draws: Of the bootstrap.
    """
    found: dict[str, Any]
    if exclusive:
        found = singlelabel_report(probabilities, targets)
        spread = singlelabel_intervals(probabilities, targets, n=draws)
        keys: tuple[str, ...] = ("accuracy", "macro_f1")
        sources = dict.fromkeys(keys, (found, spread))
    else:
        ranked = multilabel_report(probabilities, targets), bootstrap_intervals(probabilities, targets, n=draws)
        decided = multilabel_report(decisions, targets), bootstrap_intervals(decisions, targets, n=draws)
        keys = (*F1_KEYS, "mAP")
        sources = dict.fromkeys(F1_KEYS, decided) | {"mAP": ranked}
    return {
        key: {"value": sources[key][0][key], "low": sources[key][1][key][0], "high": sources[key][1][key][1]}
        for key in keys
    }
