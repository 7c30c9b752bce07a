"""Calibration report: fitted on one half of a split, reported on the other.

Calibration (temperature, isotonic), conformal label sets, and thresholds per class,
from the predictions of a training run or `intclip evaluate --out`. The halves are random, so guarantees for
exchangeable photos can be checked.
"""

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from intclip.data.sample import check_positive_share
from intclip.errors import DatasetError, reason
from intclip.evaluation.calibration import apply_temperature, fit_isotonic, fit_temperature, reliability_curve
from intclip.evaluation.conformal import class_miss_rate_thresholds, label_sets, miss_rate_threshold, set_report
from intclip.evaluation.report import THRESHOLD, markdown_table, percent, render
from intclip.evaluation.scoring import Report, to_json
from intclip.extras import require
from intclip.files import atomic_path
from intclip.inference.bundle import move_thresholds, set_temperature
from intclip.inference.results import score_columns
from intclip.metrics import Floats, multilabel_report, positives
from intclip.thresholds import SHRINKAGE, tune_threshold

_TARGET = "target: "
_F1 = ("macro_f1", "micro_f1", "samples_f1")
_HALVES = 100
"""Number of random splits over which the coverage of label sets is averaged."""
_SPREAD = ("coverage", "deviation")
_MAPS = {"none": "uncalibrated", "temperature": "temperature", "isotonic": "isotonic"}


@dataclass(frozen=True)
class SavedPredictions:
    """Saved predictions of one split.

    Attributes:
        labels: K names.
        scores: (N, K) in [0, 1].
        targets: (N, K); NaN where unknown.
        exclusive: Whether exactly one label applies, so that scores of a photo sum to 1.
    """

    labels: list[str]
    scores: Floats
    targets: Floats
    exclusive: bool = False

    def subset(self, rows: npt.NDArray[np.int64]) -> "SavedPredictions":
        """Select some photos."""
        return replace(self, scores=self.scores[rows], targets=self.targets[rows])

    def lacking(self, positive_share: float) -> list[str]:
        """Return labels that every photo or no photo has, which cannot be measured."""
        positive = positives(self.targets, positive_share)
        negative = ~positive & ~np.isnan(self.targets)
        return [name for k, name in enumerate(self.labels) if not (positive[:, k].any() and negative[:, k].any())]


def read_predictions(path: Path) -> SavedPredictions:
    """Read a file of `write_predictions`.

    Raises:
        DatasetError: The file is missing, or not a table of predictions.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        hint = "train a model, or write it with `intclip evaluate RUN --split val --out FOLDER`"
        raise DatasetError(f"{path} cannot be read as predictions; {hint}") from error
    named = [name.removeprefix(_TARGET) for name in table.column_names if name.startswith(_TARGET)]
    names = dict(zip(named, score_columns(named), strict=True))
    labels = [label for label, column in names.items() if column in table.column_names]
    if not labels:
        raise DatasetError(f"{path} has no columns LABEL and '{_TARGET}LABEL'; give a predictions-SPLIT.parquet")

    def columns(names: Sequence[str]) -> Floats:
        return np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float64)

    scores, targets = columns([names[label] for label in labels]), columns([_TARGET + label for label in labels])
    exclusive = bool(np.allclose(scores.sum(axis=1), 1, atol=1e-3) and (np.nansum(targets, axis=1) <= 1 + 1e-3).all())
    return SavedPredictions(labels, scores, targets, exclusive)


def positive_share_of(predictions: Path) -> float:
    """Return the smallest positive share from the report next to the predictions; else one half.

    Raises:
        DatasetError: The report is damaged.
    """
    return float(_report_of(predictions).get("positive_share", 0.5))


def _report_name(predictions: Path) -> str:
    return f"report-{predictions.stem.removeprefix('predictions-')}"


def _report_of(predictions: Path) -> Report:
    """Read the report next to the predictions; empty if there is none."""
    path = predictions.with_name(f"{_report_name(predictions)}.json")
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read ({reason(error)}); evaluate again, or remove it") from error


def fitted_temperature(predictions: SavedPredictions) -> float:
    """Fit the temperature of these predictions; see `intclip.evaluation.calibration.fit_temperature`.

    Raises:
        DatasetError: No target is above 0, or none is below 1, so the best temperature would be infinite.
    """
    targets = predictions.targets
    if not (targets > 0).any() or not (targets < 1).any():
        lacks = "a photo that has a label" if not (targets > 0).any() else "a photo without one"
        raise DatasetError(f"a temperature needs positive and negative labels; there is never {lacks}")
    if predictions.exclusive:
        return fit_temperature(np.log(np.clip(predictions.scores, 1e-38, 1)), targets, exclusive=True)
    clipped = np.clip(predictions.scores, 1e-12, 1 - 1e-12)
    return fit_temperature(np.log(clipped) - np.log1p(-clipped), targets)


def write_temperature(run: Path, temperature: float) -> list[str]:
    """Store a temperature in a run's bundle, and update its thresholds, saved predictions and reports.

    Thresholds, of the bundle and of each report, are moved so that predicted labels stay the same.

    Args:
        run: A training run's folder.
        temperature: From `fitted_temperature`.

    Returns: The splits whose predictions and reports were updated.

    Raises:
        BundleError: The bundle already has a temperature, or is damaged.
        DatasetError: A report or the predictions of a split are damaged.
    """
    files = sorted(run.glob("predictions-*.parquet"))
    before = [(file, read_predictions(file), _report_of(file)) for file in files]
    texts: dict[Path, str] = {}
    metrics_file = run / "metrics.json"
    if metrics_file.is_file():
        metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
        if "thresholds" in metrics and metrics.get("task") != "singlelabel":
            metrics["thresholds"] = move_thresholds(metrics["thresholds"], temperature).tolist()
        texts[metrics_file] = report_text(metrics)
    with ExitStack() as together:  # a full disk or Ctrl-C changes nothing: files are replaced at the end
        for file, found, report in before:
            moved = apply_temperature(found.scores, temperature, exclusive=found.exclusive).astype(np.float32)
            table = pq.read_table(file)
            for k, column in enumerate(score_columns(found.labels)):
                table = table.set_column(table.column_names.index(column), column, pa.array(moved[:, k]))
            for name in [name for name in table.column_names if name.startswith(THRESHOLD)]:
                levels = pa.array(move_thresholds(table[name].to_numpy(), temperature))
                table = table.set_column(table.column_names.index(name), name, levels)
            pq.write_table(table, together.enter_context(atomic_path(file)))
            if "thresholds" in report:
                levels = move_thresholds(report["per_class"]["threshold"], temperature).tolist()
                report |= {"thresholds": move_thresholds(report["thresholds"], temperature).tolist()}
                report["per_class"] |= {"threshold": levels}
                page = run / f"{_report_name(file)}.md"
                title = page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
                texts |= {page.with_suffix(".json"): report_text(report), page: render(report, "multilabel", title)}
        for path, text in texts.items():
            together.enter_context(atomic_path(path)).write_text(text, encoding="utf-8", newline="\n")
        set_temperature(run / "bundle", temperature)
    return [file.stem.removeprefix("predictions-") for file in files]


def calibration_report(
    predictions: SavedPredictions,
    *,
    miss_rate: float = 0.1,
    positive_share: float = 0.5,
    seed: int = 0,
) -> Report:
    """Fit on one half of the photos, report on the other.

    Args:
        predictions: On a split that was not used for training.
        miss_rate: Target miss rate of the label sets, in (0, 1).
        positive_share: Smallest positive target, in (0, 1]; calibration itself uses the shares of votes.
        seed: Seed of the halves.

    Returns:
        JSON values: "photos" (of each half), "temperature", "calibration" (by map: "ece", "ece_equal_count", "brier",
        "curve"), "sets" (by guarantee), "sets_over_halves" (by guarantee: mean and deviation of the
        coverage over many random splits), "thresholds" (by kind; none for single-label tasks), "lacking" (labels that
        every photo or no photo has), and the arguments.

    Raises:
        DatasetError: There are fewer than four photos, one half has no known target, there are no positive or no
            negative targets, or `positive_share` is out of range.
    """
    check_positive_share(positive_share)
    if len(predictions.scores) < 4:
        number = len(predictions.scores)
        raise DatasetError(f"{number} photos are too few to split into two halves; use at least 4")
    generator = np.random.default_rng(seed)
    fit, held = _halves(predictions, generator)
    if np.isnan(fit.targets).all() or np.isnan(held.targets).all():
        raise DatasetError("one half of the photos has no known target; take a split with more labels")
    temperature = fitted_temperature(fit)
    isotonic = fit_isotonic(fit.scores, fit.targets)(held.scores)
    if predictions.exclusive:
        isotonic = isotonic / np.maximum(isotonic.sum(axis=1, keepdims=True), 1e-12)
    mapped = {
        "none": held.scores,
        "temperature": apply_temperature(held.scores, temperature, exclusive=predictions.exclusive),
        "isotonic": isotonic,
    }
    report: Report = to_json(
        {
            "photos": {"fit": len(fit.scores), "report": len(held.scores)},
            "arguments": {"miss_rate": miss_rate, "positive_share": positive_share, "seed": seed},
            "labels": predictions.labels,
            "lacking": predictions.lacking(positive_share),
            "temperature": temperature,
            "calibration": {name: _calibration(scores, held.targets) for name, scores in mapped.items()},
            "sets": _sets(fit, held, miss_rate, positive_share),
            "sets_over_halves": _sets_over_halves(predictions, generator, miss_rate, positive_share),
            "thresholds": {} if predictions.exclusive else _thresholds(fit, held, positive_share),
        }
    )
    return report


def render_calibration(report: Mapping[str, Any], title: str) -> str:
    """Render the report as Markdown."""
    photos, given = report["photos"], report["arguments"]
    head = (
        f"# {title}\n\nFitted on {photos['fit']} photos, reported on {photos['report']} others. A label is "
        f"positive from {given['positive_share']:.2g} of the votes.\n"
    )
    errors = [
        [_MAPS[name], percent(row["ece"]), percent(row["ece_equal_count"]), f"{row['brier']:.4f}"]
        for name, row in report["calibration"].items()
    ]
    if report["lacking"]:
        head += f"\nEvery photo has these labels, or none: {', '.join(report['lacking'])}.\n"
    sets = []
    for name, row in report["sets"].items():
        often = report["sets_over_halves"][name]
        covered = f"{percent(often['coverage'])} ± {percent(often['deviation'])}"
        sets.append([name, percent(row["coverage"]), covered, percent(row["worst_class"]), f"{row['size']:.2f}"])
    thresholds = [
        [name, *(percent(row[key]) for key in _F1), _levels(row["threshold"])]
        for name, row in report["thresholds"].items()
    ]
    parts = [
        head,
        f"Temperature {report['temperature']:.3f}.\n",
        markdown_table(["Probabilities", "ECE (%)", "ECE, equal-mass bins (%)", "Brier"], errors),
        f"Label sets with a target miss rate of {percent(given['miss_rate'])} %:\n",
        markdown_table(
            [
                "Guarantee",
                "Coverage (%)",
                f"Over {_HALVES} random splits (%)",
                "Miss rate, worst class (%)",
                "Labels per photo",
            ],
            sets,
        ),
        "The guarantee is for photos like these; if they also selected the epoch, coverage of others is slightly "
        "lower.\n",
    ]
    if thresholds:
        parts += [
            f"Thresholds, per class also shrunk to the global one by {SHRINKAGE:g} pseudo-positives:\n",
            markdown_table(["Thresholds", "Macro F1", "Micro F1", "Samples F1", "From – to"], thresholds),
        ]
    return "\n".join(parts)


def draw_calibration(report: Mapping[str, Any], path: Path, title: str) -> None:
    """Plot reliability curves and bin counts as PNG.

    Raises:
        MissingExtraError: The extra `train` is not installed.
        StorageError: It cannot be written.
    """
    figure = require("matplotlib.figure", "train").Figure(figsize=(6, 7), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for (name, row), marker in zip(report["calibration"].items(), "osD", strict=True):
        curve = row["curve"]
        label = f"{_MAPS[name]}, ECE {percent(row['ece'])} %"
        (line,) = axes.plot(curve["score"], curve["frequency"], marker=marker, markersize=4, label=label)
        counts.plot(curve["score"], curve["count"], marker=marker, markersize=3, color=line.get_color())
    axes.set(ylabel="share of votes observed", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.legend(loc="upper left")
    counts.set(xlabel="probability", ylabel="entries", yscale="log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:
        partial.write_bytes(buffer.getvalue())


def report_text(report: Mapping[str, Any]) -> str:
    """Return the report as JSON text."""
    return json.dumps(report, indent=1, allow_nan=False) + "\n"


def _calibration(scores: Floats, targets: Floats) -> dict[str, Any]:
    curve = reliability_curve(scores, targets)
    return {
        "ece": curve.error,
        "ece_equal_count": reliability_curve(scores, targets, equal_count=True).error,
        "brier": float(np.nanmean((scores - targets) ** 2)),
        "curve": {"score": curve.score, "frequency": curve.frequency, "count": curve.count},
    }


def _halves(predictions: SavedPredictions, generator: np.random.Generator) -> tuple[SavedPredictions, SavedPredictions]:
    order = generator.permutation(len(predictions.scores)).astype(np.int64)
    half = len(order) // 2
    return predictions.subset(order[:half]), predictions.subset(order[half:])


def _sets_over_halves(
    predictions: SavedPredictions, generator: np.random.Generator, miss_rate: float, share: float
) -> dict[str, Any]:
    covered: dict[str, list[float]] = {}
    for _ in range(_HALVES):
        for name, row in _sets(*_halves(predictions, generator), miss_rate, share).items():
            covered.setdefault(name, []).append(row["coverage"])
    known = {name: [rate for rate in rates if not np.isnan(rate)] for name, rates in covered.items()}
    return {
        name: {"coverage": np.mean(rates), "deviation": np.std(rates)} if rates else dict.fromkeys(_SPREAD, np.nan)
        for name, rates in known.items()
    }


def _sets(fit: SavedPredictions, held: SavedPredictions, miss_rate: float, share: float) -> dict[str, Any]:
    promises: dict[str, float | Floats] = {
        "per photo": miss_rate_threshold(fit.scores, fit.targets, miss_rate=miss_rate, positive_share=share),
        "per class": class_miss_rate_thresholds(fit.scores, fit.targets, miss_rate=miss_rate, positive_share=share),
    }
    rows: dict[str, Any] = {}
    for name, level in promises.items():
        found = set_report(label_sets(held.scores, level), held.targets, positive_share=share)
        seen = found.class_miss_rates[~np.isnan(found.class_miss_rates)]
        rows[name] = {
            "threshold": np.where(np.isneginf(level), 0.0, level),  # every label is in the set; JSON has no infinity
            "miss_rate": found.miss_rate,
            "coverage": 1 - found.miss_rate,
            "class_miss_rates": found.class_miss_rates,
            "worst_class": seen.max() if len(seen) else None,
            "size": found.size,
            "empty": found.empty,
        }
    return rows


def _thresholds(fit: SavedPredictions, held: SavedPredictions, share: float) -> dict[str, Any]:
    kinds: dict[str, float | Floats] = {
        "global": tune_threshold(fit.scores, fit.targets, positive_share=share),
        "per class": tune_threshold(fit.scores, fit.targets, per_class=True, positive_share=share),
        "per class, shrunk": tune_threshold(
            fit.scores, fit.targets, per_class=True, shrinkage=SHRINKAGE, positive_share=share
        ),
    }
    rows: dict[str, Any] = {}
    for name, level in kinds.items():
        found = multilabel_report(held.scores, held.targets, thresholds=level, positive_share=share)
        rows[name] = {"threshold": level, **{key: found[key] for key in _F1}}
    return rows


def _levels(threshold: Any) -> str:
    levels = threshold if isinstance(threshold, list) else [threshold]
    return f"{min(levels):.2f}" if min(levels) == max(levels) else f"{min(levels):.2f} – {max(levels):.2f}"
