"""From probabilities, targets and thresholds to a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.labels.taxonomy import Taxonomy
from intclip.metrics import (
    bootstrap_intervals,
    multilabel_report,
    singlelabel_intervals,
    singlelabel_report,
)

Task = Literal["multilabel", "singlelabel"]
Thresholds = float | npt.NDArray[np.float64]
Report = dict[str, Any]
SELECTION = {
    "multilabel": ("macro_f1", "micro_f1", "samples_f1", "mAP"),
    "singlelabel": ("accuracy",),
}
"""Metrics averaged by the selection metric "mean" (paper §4.1 and the released code), by task."""


@dataclass(frozen=True)
class Scores:
    """Probabilities of the readable photos of a split.

    Attributes:
        ids: Sample ids, N of them.
        probabilities: (N, K) float32.
        targets: (N, K) float32; NaN where unknown.
        unreadable: Ids of unreadable photos.
    """

    ids: list[str]
    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    unreadable: list[str]


def make_report(
    scores: Scores,
    task: Task,
    taxonomy: Taxonomy,
    thresholds: Thresholds,
    *,
    positive_share: float,
    draws: int = 0,
    seed: int = 0,
) -> Report:
    """Compute all metrics of a split as JSON values, with subsets and, with `draws`, 95 % bootstrap intervals.

    Returns: The result of `multilabel_report` or `singlelabel_report`, arrays as lists, and "labels", "thresholds",
        "positive_share", "unreadable", "intervals".
    """
    report: Report
    if task == "singlelabel":
        report = singlelabel_report(scores.probabilities, scores.targets)
        if draws:
            report["intervals"] = singlelabel_intervals(scores.probabilities, scores.targets, n=draws, seed=seed)
    else:
        report = multilabel_report(
            scores.probabilities,
            scores.targets,
            thresholds=thresholds,
            subsets=subsets(taxonomy) or None,
            positive_share=positive_share,
        )
        if draws:
            report["intervals"] = bootstrap_intervals(
                scores.probabilities,
                scores.targets,
                thresholds=thresholds,
                n=draws,
                seed=seed,
                positive_share=positive_share,
            )
        levels = np.asarray(thresholds)
        report["thresholds"] = levels.mean(axis=0) if levels.ndim == 2 else thresholds
        report["positive_share"] = positive_share
    report["labels"] = list(taxonomy.names)
    report["unreadable"] = scores.unreadable
    plain: Report = to_json(report)
    return plain


def headline(report: Mapping[str, Any], task: Task) -> dict[str, float]:
    """Return the main metrics for logs and tables, as fractions."""
    keys = (*SELECTION[task], "macro_f1") if task == "singlelabel" else SELECTION[task]
    return {key: report[key] for key in keys}


def subsets(taxonomy: Taxonomy) -> dict[str, list[int]]:
    """Return the taxonomy's subsets as class indices, such as {"easy": [0, 7, 19], …}.

    A name used by several partitions, such as "other", is prefixed with its partition. Empty
    subsets are skipped.
    """
    uses = Counter(name for partition in taxonomy.subsets.values() for name in partition)
    return {
        name if uses[name] == 1 else f"{key}: {name}": [taxonomy.names.index(member) for member in members]
        for key, partition in taxonomy.subsets.items()
        for name, members in partition.items()
        if members
    }


def to_json(value: Any) -> Any:
    """Convert to JSON types; NaN becomes null."""
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
