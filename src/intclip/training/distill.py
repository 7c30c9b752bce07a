"""Distillation on unlabelled photos, whose targets are the teacher's probabilities; see `intclip.training.teacher`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError
from intclip.evaluation.saved import SavedEvaluation, read_evaluation
from intclip.files import write_text
from intclip.inference.bundle import set_thresholds
from intclip.inference.predictor import PHOTOS, Predictor
from intclip.training.recipe import load_recipe
from intclip.training.run import TrainResult, check_directory, train
from intclip.training.teacher import with_probabilities

FEWEST_PHOTOS = 50
AGREEMENT = "agreement.json"


@dataclass(frozen=True)
class Distilled:
    """A student, and its agreement with its teacher on held-out photos.

    Attributes:
        run: The training run.
        photos: Number of photos scored by the teacher.
        agreement: "photos" held out; "difference", the mean absolute difference of a probability; "labels", the
            share of equal decisions; "top_1", the share of photos with the same most probable label.
    """

    run: TrainResult
    photos: int
    agreement: dict[str, float]


def distill(
    teacher: Predictor,
    photos: Iterable[Path],
    out: Path,
    *,
    recipe: str = "distill",
    overrides: Sequence[str] = (),
    resume: bool = False,
) -> Distilled:
    """Train a student on a teacher's probabilities of unlabelled photos.

    The student inherits the teacher's thresholds for photos, since it learns the teacher's probabilities.

    Args:
        teacher: Any model.
        photos: Unlabelled photos; a tenth is held out to select the epoch and to measure the agreement.
        out: The run's directory, as from `train`, plus `agreement.json`.
        recipe: The student's recipe.
        overrides: Changes of the recipe, "key=value".
        resume: Continue from the newest checkpoint; the teacher scores the photos again.

    Raises:
        DatasetError: Fewer than `FEWEST_PHOTOS` photos could be read.
        RecipeError: The recipe is invalid.
        StorageError: The directory has another run, or cannot be written.
    """
    kind = ["method.options.loss.kind=softmax", "evaluate.metric=accuracy"] if teacher.taxonomy.exclusive else []
    chosen = load_recipe(recipe, [*kind, *overrides])
    check_directory(out, chosen, resume=resume)
    dataset = soft_labels(teacher, photos)
    run = train(chosen, out, resume, dataset=dataset)
    set_thresholds(run.bundle, _levels(teacher))
    agreement = compare(read_evaluation(out, "val"), teacher)
    write_text(out / AGREEMENT, json.dumps(agreement, indent=1) + "\n")
    return Distilled(run, len(dataset.splits["train"]), agreement)


def soft_labels(teacher: Predictor, photos: Iterable[Path]) -> Dataset:
    """Make a dataset with the teacher's probabilities as targets, without unreadable photos.

    Raises:
        DatasetError: Fewer than `FEWEST_PHOTOS` photos could be read.
    """
    unknown = np.full(len(teacher.taxonomy), np.nan, dtype=np.float32)
    samples = with_probabilities([Sample(str(path), unknown, image=path) for path in photos], teacher)
    if len(samples) < FEWEST_PHOTOS:
        raise DatasetError(
            f"{len(samples)} photos could be read; a student needs at least {FEWEST_PHOTOS}, better a few thousand"
        )
    return Dataset(
        f"photos labelled by {teacher.card.model}",
        teacher.taxonomy,
        "singlelabel" if teacher.taxonomy.exclusive else "multilabel",
        {"train": samples},
        positive_share=float(np.clip(np.mean(_levels(teacher)), 0.01, 1)),
    )


def _levels(teacher: Predictor) -> npt.NDArray[np.float32]:
    """Return the teacher's thresholds (K,) for photos without text, which are all that the student sees."""
    return teacher.resolve_thresholds(None, PHOTOS)


def compare(student: SavedEvaluation, teacher: Predictor) -> dict[str, float]:
    """Measure a student's agreement with its teacher, whose probabilities are the targets; see `Distilled`."""
    levels = _levels(teacher)
    same = (student.probabilities >= levels) == (student.targets >= levels)
    best = student.probabilities.argmax(axis=1) == student.targets.argmax(axis=1)
    return {
        "photos": len(student.ids),
        "difference": float(np.abs(student.probabilities - student.targets).mean()),
        "labels": float(same.mean()),
        "top_1": float(best.mean()),
    }
