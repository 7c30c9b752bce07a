"""Evaluations with random scores, in the format of training and `intclip evaluate --out`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fakes import tiny_taxonomy
from intclip.evaluation.report import write_predictions, write_report
from intclip.evaluation.scoring import Scores, Task, make_report
from intclip.labels.taxonomy import Taxonomy

COUNT = 40


def write_evaluation(
    folder: Path,
    *,
    taxonomy: Taxonomy | None = None,
    seed: int = 0,
    task: Task = "multilabel",
    ids: Sequence[str] | None = None,
    quality: float = 0.4,
    names: Sequence[str] | None = None,
    votes: int = 1,
    positive_share: float = 0.5,
) -> Path:
    """Write scores of test photos, all with the same truth.

    Args:
        folder: Output folder.
        taxonomy: The labels; five tiny ones by default.
        seed: Of the scores.
        task: "multilabel" or "singlelabel".
        ids: Of the photos, at most `COUNT`.
        quality: From 0, random scores, to 1, the truth.
        names: Of the labels, in place of the taxonomy's.
        votes: Number of votes per label; the truth is their share if there are several.
        positive_share: Minimum share of votes of a true label.
    """
    taxonomy = taxonomy or tiny_taxonomy()
    classes = len(taxonomy.names)
    ids = list(ids or (f"photo {n}" for n in range(COUNT)))
    rng = np.random.default_rng(0)
    if task == "multilabel":
        targets = (rng.random((votes, COUNT, classes)) < 0.35).mean(0).astype(np.float32)
    else:
        targets = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, COUNT)]
    targets = targets[: len(ids)]
    noise = np.random.default_rng((seed, 1)).random(targets.shape)  # different draws than the truth's
    scores = (quality * targets + (1 - quality) * noise).astype(np.float32)
    if task == "singlelabel":
        scores /= scores.sum(axis=1, keepdims=True)
    found = Scores(ids, scores, targets, ["gone"])
    report = make_report(found, task, taxonomy, 0.5, positive_share=positive_share, draws=20)
    if names:
        report["labels"] = list(names)
    write_report(folder, "report-test", report, task, "x")
    write_predictions(folder / "predictions-test.parquet", found, names or taxonomy.names)
    return folder
