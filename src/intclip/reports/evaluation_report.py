"""An evaluation as one offline HTML file: tables, curves as inline SVG, and photos.

Everything is drawn here; the page's script only sorts the table of classes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intclip.data.images import ImageInput, data_url, read_image
from intclip.errors import ImageError
from intclip.evaluation.calibration import reliability_curve
from intclip.evaluation.curves import (
    Decisions,
    best_and_worst,
    confusion,
    cooccurrence,
    decide,
    photo_losses,
    precision_recall,
    threshold_curves,
)
from intclip.evaluation.report import TITLES
from intclip.evaluation.saved import SavedEvaluation, same_photos
from intclip.files import write_text
from intclip.metrics import Floats, bootstrap_differences, multilabel_report, singlelabel_report

TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL = 220
"""Longest side of a photo in the page, in pixels."""
PHOTOS = 12
"""Photos per row: best, worst, better by one model, by the other."""
DRAWS = 500
FindPhoto = Callable[[str], ImageInput | None]
"""Maps an id to its photo, or None."""
HEADLINE = {
    "multilabel": ("macro_f1", "micro_f1", "samples_f1", "mAP"),
    "singlelabel": ("accuracy", "macro_f1", "balanced_accuracy"),
}


@dataclass(frozen=True)
class ReportPhoto:
    """A photo of the page.

    Attributes:
        id: Id of the sample.
        image: Data URI; None if the photo is missing.
        labels: (name, "hit", "missed" or "wrong", probability), true ones first.
        note: A figure, such as its loss.
    """

    id: str
    image: str | None
    labels: list[tuple[str, str, float]]
    note: str


def write_evaluation_report(
    evaluation: SavedEvaluation,
    path: str | os.PathLike[str],
    *,
    against: SavedEvaluation | None = None,
    find_photo: FindPhoto | None = None,
) -> None:
    """Write the page of an evaluation, optionally compared with another model.

    Args:
        evaluation: Evaluation of the model.
        path: The HTML file to write.
        against: Evaluation of another model with the same labels; only common photos are compared.
        find_photo: Finds photos; without it the page has only their ids.

    Raises:
        DatasetError: The two cannot be compared, see `same_photos`.
        StorageError: The file cannot be written.
    """
    write_text(path, render(evaluation, against=against, find_photo=find_photo))


def render(
    evaluation: SavedEvaluation, *, against: SavedEvaluation | None = None, find_photo: FindPhoto | None = None
) -> str:
    """Return the page as HTML; see `write_evaluation_report`."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None or value != value else f"{100 * value:.1f}"
    environment.filters["signed"] = lambda value: "–" if value != value else f"{100 * value:+.1f}".replace("-", "−")
    style = "".join(
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("look.css", "report.css", "evaluation.css")
    )
    content = page_content(evaluation, against, find_photo or (lambda _: None))
    script = (TEMPLATES / "evaluation.js").read_text(encoding="utf-8")
    return environment.get_template("evaluation.html").render(style=style, script=script, **content)


def page_content(evaluation: SavedEvaluation, against: SavedEvaluation | None, find_photo: FindPhoto) -> dict[str, Any]:
    """Return the variables of the template."""
    other = None
    if against is not None:
        evaluation, other = same_photos(evaluation, against)
    exclusive = evaluation.task == "singlelabel"
    ours = _decisions(evaluation)
    theirs = None if other is None else _decisions(other)
    losses = photo_losses(ours, exclusive=exclusive)
    show = _Shower(evaluation, ours, find_photo)
    best, worst = best_and_worst(losses, ours, PHOTOS)
    levels = evaluation.thresholds
    content: dict[str, Any] = {
        "name": evaluation.name,
        "other": None if other is None else other.name,
        "split": evaluation.split,
        "photos": len(evaluation.ids),
        "labels": evaluation.labels,
        "exclusive": exclusive,
        "unreadable": len(evaluation.report.get("unreadable", [])),
        "threshold": levels if isinstance(levels, float) else None,
        "tiles": _tiles(evaluation, other),
        "classes": _classes(evaluation, other),
        "curves": [] if exclusive else _threshold_lines(ours, theirs),
        "calibration": _calibration(ours, theirs),
        "precision_recall": _precision_recall(evaluation, ours, theirs),
        "confusion": _cells(confusion(ours)),
        "truth": None if exclusive else _cells(cooccurrence(ours.positive)),
        "guess": None if exclusive else _cells(cooccurrence(ours.predicted)),
        "best": show(best, lambda row: f"loss {losses[row]:.3f}"),
        "worst": show(worst, lambda row: f"loss {losses[row]:.3f}"),
    }
    if theirs is not None:
        gain = photo_losses(theirs, exclusive=exclusive) - losses
        order = np.argsort(-np.nan_to_num(gain), kind="stable")

        def told(row: int) -> str:
            return f"{'−' if gain[row] > 0 else '+'}{abs(gain[row]):.3f} loss"

        content["better"] = show([row for row in order[:PHOTOS] if gain[row] > 0], told)
        content["weaker"] = show([row for row in order[::-1][:PHOTOS] if gain[row] < 0], told)
    return content


def _decisions(evaluation: SavedEvaluation) -> Decisions:
    return decide(
        evaluation.probabilities, evaluation.targets, evaluation.thresholds, positive_share=evaluation.positive_share
    )


def _report(evaluation: SavedEvaluation) -> Mapping[str, Any]:
    """Return the report on the given photos: a comparison may have fewer."""
    if evaluation.task == "singlelabel":
        return singlelabel_report(evaluation.probabilities, evaluation.targets)
    levels = evaluation.thresholds
    return multilabel_report(
        evaluation.probabilities,
        evaluation.targets,
        thresholds=0.5 if levels is None else levels,
        positive_share=evaluation.positive_share,
    )


def _tiles(evaluation: SavedEvaluation, other: SavedEvaluation | None) -> list[dict[str, Any]]:
    report = _report(evaluation)
    intervals = evaluation.report.get("intervals", {}) if len(evaluation.ids) == evaluation.report["images"] else {}
    tiles = [
        {"key": key, "title": TITLES[key], "value": report[key], "interval": intervals.get(key)}
        for key in HEADLINE[evaluation.task]
    ]
    if other is not None:
        theirs = _report(other)
        differences = _differences(evaluation, other) if evaluation.task == "multilabel" else {}
        for tile in tiles:
            key = str(tile["key"])
            tile["other"] = theirs[key]
            tile["difference"], *tile["difference_interval"] = differences.get(key, (report[key] - theirs[key],))
    return tiles


def _differences(first: SavedEvaluation, second: SavedEvaluation) -> dict[str, tuple[float, float, float]]:
    levels = [0.5 if each.thresholds is None else each.thresholds for each in (first, second)]
    return bootstrap_differences(
        first.probabilities,
        second.probabilities,
        first.targets,
        thresholds=(levels[0], levels[1]),
        n=DRAWS,
        positive_share=first.positive_share,
    )


def _classes(evaluation: SavedEvaluation, other: SavedEvaluation | None) -> list[dict[str, Any]]:
    ours = _report(evaluation)["per_class"]
    theirs = None if other is None else _report(other)["per_class"]
    rows = []
    for k, name in enumerate(evaluation.labels):
        row: dict[str, Any] = {"name": name} | {key: values[k].item() for key, values in ours.items()}
        if theirs is not None:
            row["differences"] = {key: row[key] - theirs[key][k].item() for key in ("AP", "f1") if key in ours}
        rows.append(row)
    return rows


def _threshold_lines(ours: Decisions, theirs: Decisions | None) -> list[dict[str, Any]]:
    lines = []
    for dashed, decisions in ((False, ours), (True, theirs)):
        if decisions is None:
            continue
        curves = threshold_curves(decisions)
        lines += [
            {"name": TITLES[key], "points": points(curves["threshold"], curves[key]), "color": color, "dashed": dashed}
            for color, key in enumerate(("macro_f1", "micro_f1", "samples_f1"))
        ]
    return lines


def _calibration(ours: Decisions, theirs: Decisions | None) -> dict[str, Any]:
    def curve(decisions: Decisions) -> Any:
        scores = decisions.scores[decisions.known]
        return reliability_curve(scores, np.nan_to_num(decisions.targets)[decisions.known])

    own = curve(ours)
    content = {"error": own.error, "points": points(own.score, own.frequency), "dots": _pairs(own.score, own.frequency)}
    top = np.log1p(own.count.max())
    content["bars"] = [(float(x), float(np.log1p(n) / top), int(n)) for x, n in zip(own.score, own.count, strict=True)]
    if theirs is not None:
        other = curve(theirs)
        content |= {"other_error": other.error, "other_points": points(other.score, other.frequency)}
    return content


def _precision_recall(evaluation: SavedEvaluation, ours: Decisions, theirs: Decisions | None) -> list[dict[str, Any]]:
    averages = multilabel_report(evaluation.probabilities, _hard(ours))["per_class"]["AP"]
    panels = []
    for k, name in enumerate(evaluation.labels):
        precision, recall = precision_recall(ours, k)
        predicted, hits = ours.predicted[:, k].sum(), (ours.predicted & ours.positive)[:, k].sum()
        positives = ours.positive[:, k].sum()
        panel = {
            "name": name,
            "AP": averages[k].item(),
            "points": points(recall, precision),
            # The model's threshold on the curve.
            "dot": (float(hits / positives), float(hits / predicted)) if predicted and positives else None,
            "share": float(positives / max(ours.known[:, k].sum(), 1)),
        }
        if theirs is not None:
            other_precision, other_recall = precision_recall(theirs, k)
            panel["other_points"] = points(other_recall, other_precision)
        panels.append(panel)
    return sorted(panels, key=lambda panel: -np.nan_to_num(panel["AP"]))


def _hard(decisions: Decisions) -> Floats:
    return np.where(decisions.known, decisions.positive, np.nan)


def points(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> str:
    """Return the points of an SVG polyline in a square of 100 × 100 with y upwards, without non-finite values."""
    return " ".join(f"{100 * a:.4g},{100 - 100 * b:.4g}" for a, b in _pairs(x, y))


def _pairs(x: Sequence[float] | Floats, y: Sequence[float] | Floats) -> list[tuple[float, float]]:
    return [(float(a), float(b)) for a, b in zip(x, y, strict=True) if np.isfinite(a) and np.isfinite(b)]


def _cells(matrix: Floats) -> list[tuple[int, int, float]]:
    """Return (row, column, share) of a matrix's cells of at least half a percent."""
    return [(int(i), int(j), float(matrix[i, j])) for i, j in np.argwhere(np.nan_to_num(matrix) >= 0.005)]


class _Shower:
    """Return photos by row, each read once."""

    def __init__(self, evaluation: SavedEvaluation, decisions: Decisions, find_photo: FindPhoto) -> None:
        self.evaluation, self.decisions, self.find_photo = evaluation, decisions, find_photo
        self.images: dict[int, str | None] = {}

    def __call__(self, rows: Sequence[int] | np.ndarray, note: Callable[[int], str]) -> list[ReportPhoto]:
        return [self._photo(int(row), note(int(row))) for row in rows]

    def _photo(self, row: int, note: str) -> ReportPhoto:
        if row not in self.images:
            self.images[row] = _thumbnail(self.find_photo(self.evaluation.ids[row]))
        positive, predicted = self.decisions.positive[row], self.decisions.predicted[row]
        labels = []
        for k in np.argsort(-self.decisions.scores[row], kind="stable"):
            if positive[k] or predicted[k]:
                how = "hit" if positive[k] and predicted[k] else "missed" if positive[k] else "wrong"
                labels.append((self.evaluation.labels[k], how, float(self.decisions.scores[row, k])))
        labels.sort(key=lambda label: ("hit", "missed", "wrong").index(label[1]))
        return ReportPhoto(self.evaluation.ids[row], self.images[row], labels, note)


def _thumbnail(source: ImageInput | None) -> str | None:
    if source is None:
        return None
    try:
        image = read_image(source, min_side=THUMBNAIL)
    except ImageError:
        return None
    return data_url(image, THUMBNAIL, quality=72)
