"""From a method and a split to probabilities, thresholds and a report."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from intclip.errors import DatasetError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method
from intclip.metrics import (
    bootstrap_intervals,
    multilabel_report,
    singlelabel_intervals,
    singlelabel_report,
)
from intclip.thresholds import tune_threshold
from intclip.training.distributed import Processes
from intclip.training.recipe import EvaluateSection
from intclip.training.source import FeatureSource, in_order

Task = Literal["multilabel", "singlelabel"]
Thresholds = float | npt.NDArray[np.float64]
Report = dict[str, Any]
SELECTION = {
    "multilabel": ("macro_f1", "micro_f1", "samples_f1", "mAP"),
    "singlelabel": ("accuracy",),
}
"""What the selection metric "mean" averages (paper §4.1 and the released code), by task."""


@dataclass(frozen=True)
class Scores:
    """Probabilities of one split, of the photos that could be read.

    Attributes:
        ids: Sample ids, N of them.
        probabilities: (N, K) float32.
        targets: (N, K) float32; NaN where unknown.
        unreadable: Ids of photos that could not be read.
    """

    ids: list[str]
    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    unreadable: list[str]


def score(
    method: Method,
    source: FeatureSource,
    task: Task,
    *,
    processes: Processes,
    batch_size: int = 64,
    precision: AbstractContextManager[Any] | None = None,
) -> Scores:
    """Probabilities of every photo of a split, computed in shares by all processes and known to each.

    Args:
        method: Put into evaluation mode.
        source: The split.
        task: Sigmoid ("multilabel") or softmax ("singlelabel").
        processes: Who takes part.
        batch_size: Photos at once in one process.
        precision: Autocast context; float32 without one.

    Raises:
        DatasetError: No photo could be read.
    """
    method.eval()
    count, classes = source.targets.shape
    # Every process fills its own rows; a sum puts them together exactly, without padding or order to restore.
    table = torch.zeros(count, classes + 1)
    with torch.inference_mode(), precision or nullcontext():
        for batch in source.batches(in_order(count, batch_size, processes.rank, processes.world)):
            if not batch.views:
                continue
            logits = method(batch.views[0]).logits.float()
            values = logits.sigmoid() if task == "multilabel" else logits.softmax(dim=1)
            rows = torch.from_numpy(batch.indices)
            table[rows, :classes] = values.cpu()
            table[rows, classes] = 1
    table = processes.sum(table).cpu()
    read = table[:, classes].numpy() > 0
    if not read.any():
        raise DatasetError(f"none of the {count} photos could be read; check the dataset's folder and its files")
    return Scores(
        ids=[name for name, there in zip(source.ids, read, strict=True) if there],
        probabilities=table[:, :classes].numpy()[read],
        targets=source.targets[read],
        unreadable=[name for name, there in zip(source.ids, read, strict=True) if not there],
    )


def choose_thresholds(
    scores: Scores | None, task: Task, protocol: EvaluateSection, positive_share: float
) -> Thresholds:
    """The protocol's thresholds, tuned on these scores where it tunes any.

    Args:
        scores: Of the validation split; None where there is none, then the fixed threshold is used.
        task: Without meaning for "singlelabel", where the most probable class is taken.
        protocol: Of the recipe.
        positive_share: A target at or above it is a yes.
    """
    if scores is None or not scores.ids or task == "singlelabel" or protocol.thresholds == "fixed":
        return protocol.threshold
    per_class = protocol.thresholds == "per_class"
    return tune_threshold(
        scores.probabilities,
        scores.targets,
        objective="macro_f1" if per_class else protocol.objective,
        per_class=per_class,
        ties=protocol.ties,
        positive_share=positive_share,
    )


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
    """All metrics of a split as JSON values, with subsets and, with `draws`, 95 % bootstrap intervals.

    Returns:
        What `multilabel_report` or `singlelabel_report` gives, arrays as lists, and "labels", "thresholds",
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
        report["thresholds"] = thresholds
        report["positive_share"] = positive_share
    report["labels"] = list(taxonomy.names)
    report["unreadable"] = scores.unreadable
    plain: Report = to_json(report)
    return plain


def selection_value(report: Mapping[str, Any], task: Task, metric: str) -> float:
    """What the best epoch maximises, see `EvaluateSection.metric`; one without meaning for the task is the mean."""
    keys = SELECTION[task] if metric == "mean" or metric not in report else (metric,)
    values = [report[key] for key in keys if report[key] is not None]
    return sum(values) / len(values) if values else 0.0


def headline(report: Mapping[str, Any], task: Task) -> dict[str, float]:
    """The few figures that a log line and a table show, as shares."""
    keys = (*SELECTION[task], "macro_f1") if task == "singlelabel" else SELECTION[task]
    return {key: report[key] for key in keys}


def subsets(taxonomy: Taxonomy) -> dict[str, list[int]]:
    """The taxonomy's subsets as class indices, such as {"easy": [0, 7, 19], …}.

    A name that several partitions use, such as "other", has its partition before it. One without classes is left out:
    it has no figures.
    """
    uses = Counter(name for partition in taxonomy.subsets.values() for name in partition)
    return {
        name if uses[name] == 1 else f"{key}: {name}": [taxonomy.names.index(member) for member in members]
        for key, partition in taxonomy.subsets.items()
        for name, members in partition.items()
        if members
    }


def to_json(value: Any) -> Any:
    """The same content in JSON's own types; NaN becomes null."""
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_json(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    return value
