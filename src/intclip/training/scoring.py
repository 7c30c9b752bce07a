"""Scoring during training: probabilities, thresholds, and the selection metric."""

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
    """Compute probabilities of every photo of a split, divided among processes and shared with all.

    Args:
        method: Switched to evaluation mode.
        source: The split.
        task: Sigmoid ("multilabel") or softmax ("singlelabel").
        processes: The processes.
        batch_size: Photos per batch of one process.
        precision: Autocast context; default: float32.

    Raises:
        DatasetError: No photo could be read.
    """
    method.eval()
    count, classes = source.targets.shape
    # Every process fills its own rows; a sum combines them exactly, without padding or reordering.
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
    """Return the protocol's thresholds, tuned on these scores if it tunes any.

    Args:
        scores: Scores of the validation split; None uses the fixed threshold.
        task: Thresholds are not used for "singlelabel".
        protocol: The recipe's.
        positive_share: Smallest positive target.
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
    """Return the selection metric, see `EvaluateSection.metric`; one that does not fit the task becomes the mean."""
    keys = SELECTION[task] if metric == "mean" or metric not in report else (metric,)
    values = [report[key] for key in keys if report[key] is not None]
    return sum(values) / len(values) if values else 0.0
