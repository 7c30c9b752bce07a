"""Evaluations on disk: read what training and `intclip evaluate --out` write."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from intclip.errors import DatasetError, StorageError, reason
from intclip.evaluation.report import THRESHOLD
from intclip.evaluation.scoring import Report, Task
from intclip.inference.results import score_columns
from intclip.strict_yaml import parse_yaml

TARGET = "target: "
"""Prefix of columns with the targets of a label."""


@dataclass(frozen=True)
class SavedEvaluation:
    """One split of one model.

    Attributes:
        name: Name of the folder.
        split: Name of the split.
        task: "multilabel" or "singlelabel".
        labels: K names.
        ids: N ids of the photos.
        probabilities: (N, K) float32.
        targets: (N, K) float32; NaN where unknown.
        report: See `make_report`.
        recipe: The training recipe; None for a folder of `intclip evaluate --out`.
        levels: Thresholds (N, K), if they differ from photo to photo.
    """

    name: str
    split: str
    task: Task
    labels: tuple[str, ...]
    ids: list[str]
    probabilities: npt.NDArray[np.float32]
    targets: npt.NDArray[np.float32]
    report: Report
    recipe: dict[str, Any] | None
    levels: npt.NDArray[np.float64] | None = None

    @property
    def thresholds(self) -> float | npt.NDArray[np.float64] | None:
        """One, K, or (N, K); None for exclusive labels."""
        if self.levels is not None:
            return self.levels
        levels = self.report.get("thresholds")
        return np.asarray(levels, dtype=np.float64) if isinstance(levels, list) else levels

    @property
    def positive_share(self) -> float:
        """Smallest positive target."""
        return float(self.report.get("positive_share", 0.5))


def evaluation_files(folder: str | os.PathLike[str], split: str) -> tuple[Path, Path]:
    """Return the files of report and predictions of a split, existing or not."""
    return Path(folder) / f"report-{split}.json", Path(folder) / f"predictions-{split}.parquet"


def read_evaluation(folder: str | os.PathLike[str], split: str = "test") -> SavedEvaluation:
    """Read `report-SPLIT.json` and `predictions-SPLIT.parquet`.

    Raises:
        StorageError: They are missing or damaged; the message lists the available splits.
    """
    folder = Path(folder)
    report_file, table_file = evaluation_files(folder, split)
    if not report_file.is_file() or not table_file.is_file():
        there = sorted(path.stem.removeprefix("report-") for path in folder.glob("report-*.json"))
        hint = f"available: {', '.join(there)}" if there else f"write them with: intclip evaluate MODEL --out {folder}"
        raise StorageError(f"{folder} has no evaluation of split {split!r}; {hint}")
    try:
        report = json.loads(report_file.read_text(encoding="utf-8"))
        table = pq.read_table(table_file)
        labels = tuple(report["labels"])
        names = (score_columns(labels), [TARGET + name for name in labels])
        columns = [np.stack([table[name].to_numpy() for name in part], 1) for part in names]
        names_of_levels = [THRESHOLD + name for name in labels]
        levels = None
        if set(names_of_levels) <= set(table.column_names):
            levels = np.stack([table[name].to_numpy() for name in names_of_levels], 1).astype(np.float64)
        ids = table["id"].to_pylist()
    except (OSError, ValueError, KeyError, TypeError) as error:  # includes Arrow's errors
        raise StorageError(
            f"{folder}: the evaluation of {split!r} is damaged ({reason(error)}); evaluate again"
        ) from error
    if not ids:
        raise StorageError(f"{table_file} has no photos; evaluate again")
    return SavedEvaluation(
        name=folder.resolve().name,
        split=split,
        task="multilabel" if "thresholds" in report else "singlelabel",
        labels=labels,
        ids=ids,
        probabilities=columns[0].astype(np.float32),
        targets=columns[1].astype(np.float32),
        report=report,
        recipe=_recipe(folder),
        levels=levels,
    )


def same_photos(first: SavedEvaluation, second: SavedEvaluation) -> tuple[SavedEvaluation, SavedEvaluation]:
    """Restrict two evaluations to common photos, in the first one's order and with its targets.

    Raises:
        DatasetError: Their labels differ, they have no photo in common, or only one is single-label.
    """
    if set(first.labels) != set(second.labels):
        raise DatasetError(
            f"{first.name} and {second.name} have different labels; compare models with the same taxonomy"
        )
    if first.task != second.task:
        one, many = (first, second) if first.task == "singlelabel" else (second, first)
        raise DatasetError(
            f"{one.name} predicts one label per photo, {many.name} any number; compare models of the same kind"
        )
    rows = {name: row for row, name in enumerate(second.ids)}
    common = [(row, rows[name]) for row, name in enumerate(first.ids) if name in rows]
    if not common:
        raise DatasetError(f"{first.name} and {second.name} have no photo in common; evaluate both on the same split")
    left, right = map(list, zip(*common, strict=True))
    columns = [second.labels.index(label) for label in first.labels]
    ours, theirs = _take(first, left, list(range(len(columns)))), _take(second, right, columns)
    # The second may use another positive share; both must be compared with the same targets.
    truth = theirs.report | {"positive_share": ours.positive_share}
    return ours, replace(theirs, targets=ours.targets, report=truth)


def _take(evaluation: SavedEvaluation, rows: list[int], columns: list[int]) -> SavedEvaluation:
    report = dict(evaluation.report)
    if isinstance(report.get("thresholds"), list):
        report["thresholds"] = [report["thresholds"][k] for k in columns]
    return replace(
        evaluation,
        labels=tuple(evaluation.labels[k] for k in columns),
        ids=[evaluation.ids[row] for row in rows],
        probabilities=evaluation.probabilities[np.ix_(rows, columns)],
        targets=evaluation.targets[np.ix_(rows, columns)],
        levels=None if evaluation.levels is None else evaluation.levels[np.ix_(rows, columns)],
        report=report,
    )


def _recipe(folder: Path) -> dict[str, Any] | None:
    file = folder / "recipe.yaml"
    if not file.is_file():
        return None
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # a report needs no recipe; it only locates the photos
    return content if isinstance(content, dict) else None
