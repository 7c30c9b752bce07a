"""Score any model of `intclip.load`, with any engine, on a split of a dataset."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track

from intclip.data.images import ImageInput
from intclip.data.sample import Dataset, Sample, check_labelled, check_one_label
from intclip.data.transforms import PhotoChange
from intclip.errors import DatasetError, ImageError
from intclip.evaluation.scoring import Report, Scores, Task, Thresholds, make_report
from intclip.inference.predictor import Predictor
from intclip.labels.taxonomy import Taxonomy
from intclip.thresholds import tune_threshold


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        task: "multilabel" or "singlelabel".
        scores: Probabilities and targets of every readable photo.
        report: All metrics as JSON values; see `make_report`.
        thresholds: One for all labels, (K,), or (N, K) if they differ from photo to photo.
    """

    task: Task
    scores: Scores
    report: Report
    thresholds: Thresholds


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    split: str = "test",
    *,
    thresholds: float | str | None = None,
    per_class: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    draws: int = 1000,
) -> Evaluation:
    """Score a model on a split.

    Args:
        predictor: The model.
        dataset: Its labels must be the model's, in any order; targets are positive from its `positive_share`.
        split: The split to score.
        thresholds: None for the model's; a number for all labels; or the name of another split, on which they are tuned
            for macro F1.
        per_class: Tune one threshold per label.
        batch_size: Photos per batch.
        workers: Threads that decode photos; default: the number of usable cores.
        draws: Bootstrap draws for 95 % intervals; 0 for none.

    Raises:
        DatasetError: The split is missing or has no known label, its labels are not the model's, thresholds
            would be tuned on the scored split, no photo can be read, or a photo has several labels where the model
            predicts one.
    """
    task: Task = "singlelabel" if predictor.taxonomy.exclusive else "multilabel"
    share = dataset.positive_share

    def score_split(name: str) -> tuple[Scores, Thresholds]:
        if not dataset.splits.get(name):
            known = ", ".join(dataset.splits)
            raise DatasetError(
                f"dataset {dataset.name} has no photos in split {name!r}; choose one of its splits: {known}"
            )
        samples = dataset.splits[name]
        check_labelled(samples, dataset.name, name)
        if task == "singlelabel":
            check_one_label(samples, dataset.taxonomy, "score a model that predicts several")
        targets = align_targets(dataset.targets(name), dataset.taxonomy, predictor.taxonomy)
        return score_photos(predictor, samples, targets, batch_size=batch_size, workers=workers)

    levels: Thresholds = 0.5
    if isinstance(thresholds, str):
        if thresholds == split:
            raise DatasetError(f"thresholds cannot be tuned on the scored split {split!r}; choose another one")
        tuning, _ = score_split(thresholds)
        levels = tune_threshold(tuning.probabilities, tuning.targets, per_class=per_class, positive_share=share)
    elif thresholds is not None:
        levels = thresholds
    scores, own = score_split(split)
    if thresholds is None:
        levels = own
    report = make_report(scores, task, predictor.taxonomy, levels, positive_share=share, draws=draws)
    return Evaluation(task, scores, report, levels)


def score_photos(
    predictor: Predictor,
    samples: Sequence[Sample],
    targets: npt.NDArray[np.float32],
    *,
    change: PhotoChange | None = None,
    batch_size: int = 32,
    workers: int | None = None,
) -> tuple[Scores, Thresholds]:
    """Score samples with the model's engine, each by the channels that it has and the model uses.

    Args:
        predictor: The model.
        samples: N samples.
        targets: (N, K), columns in the model's order.
        change: Applied to every photo first, such as a `Corruption`.
        batch_size: Photos per batch.
        workers: Decoding threads.

    Returns: The scores, and the model's thresholds: one for all labels, (K,), or (N, K) if samples have channels with
    different thresholds.

    Raises:
        DatasetError: Nothing could be read.
    """
    posts = ((_photo(sample), sample.text) for sample in samples)
    shown = track(
        predictor.score(posts, batch_size=batch_size, workers=workers, augment=change),
        "scoring",
        total=len(samples),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    there, unreadable, probabilities, levels = list[int](), list[str](), [], []
    first: ImageError | None = None
    for row, scored in enumerate(shown):
        if scored.error is not None:
            first = first or scored.error
            unreadable.append(samples[row].id)
            continue
        there.append(row)
        probabilities.append(scored.outputs["probabilities"].astype(np.float32))
        levels.append(predictor.resolve_thresholds(None, scored.channels).astype(np.float64).round(6))
    if not there:
        raise DatasetError(f"none of the {len(samples)} posts could be read; the first: {first}")
    scores = Scores([samples[row].id for row in there], np.stack(probabilities), targets[there], unreadable)
    own = np.stack(levels)
    if (own != own[0]).any():
        return scores, own
    return scores, float(own[0, 0]) if (own[0] == own[0, 0]).all() else own[0]


def _photo(sample: Sample) -> ImageInput | None:
    """Return the sample's photo; None if its file is missing."""
    gone = isinstance(sample.image, Path) and not sample.image.exists()
    return None if gone and sample.text else sample.image


def align_targets(targets: npt.NDArray[np.float32], own: Taxonomy, model: Taxonomy) -> npt.NDArray[np.float32]:
    """Reorder the columns of a dataset's targets (N, K) from its own taxonomy to the model's.

    Raises:
        DatasetError: Their labels differ.
    """
    if own.names == model.names:
        return targets
    missing, extra = set(model.names) - set(own.names), set(own.names) - set(model.names)
    if missing or extra:
        examples = ", ".join(repr(name) for name in sorted(missing | extra)[:3])
        raise DatasetError(
            f"the dataset's labels ({own.name}, {len(own.names)}) are not the model's ({model.name}, "
            f"{len(model.names)}), such as {examples}; use a dataset and a model with the same taxonomy"
        )
    return targets[:, [own.names.index(name) for name in model.names]]
