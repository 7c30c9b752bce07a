"""Scores of a split while training: the method's probabilities, the protocol's thresholds, the epoch's value."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from intclip.errors import DatasetError
from intclip.evaluation.scoring import SELECTION, Scores, Task, Thresholds
from intclip.methods.base import Method
from intclip.thresholds import tune_threshold
from intclip.training.distributed import Processes
from intclip.training.recipe import EvaluateSection
from intclip.training.source import FeatureSource, in_order


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
        scores: The validation split's; None where there is no such split, then the fixed threshold is used.
        task: Without meaning for "singlelabel", where the most probable class is taken.
        protocol: The recipe's.
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


def selection_value(report: Mapping[str, Any], task: Task, metric: str) -> float:
    """What the best epoch maximises, see `EvaluateSection.metric`; one without meaning for the task is the mean."""
    keys = SELECTION[task] if metric == "mean" or metric not in report else (metric,)
    values = [report[key] for key in keys if report[key] is not None]
    return sum(values) / len(values) if values else 0.0
