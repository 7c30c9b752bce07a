"""Reports as Markdown and JSON, and tables of predictions."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from intclip.evaluation.scoring import SELECTION, Scores, Task, Thresholds
from intclip.files import atomic_path, write_text
from intclip.inference.results import score_columns

THRESHOLD = "threshold: "
"""Prefix of columns with the thresholds of a label."""
TITLES = {
    "macro_f1": "Macro F1",
    "micro_f1": "Micro F1",
    "samples_f1": "Samples F1",
    "mAP": "mAP",
    "mAP_voc": "mAP (VOC)",
    "CF1": "CF1",
    "OF1": "OF1",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
}


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with two decimals; a dash for NaN."""
    return "–" if value is None else f"{100 * value:.2f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table, first column left-aligned, others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def render(report: Mapping[str, Any], task: Task, title: str) -> str:
    """Render a report as Markdown: main metrics with intervals, subsets, and every class."""
    intervals = report.get("intervals", {})
    rows = []
    for key in (*SELECTION[task], *(k for k in TITLES if k not in SELECTION[task])):
        if key in report:
            low, high = intervals.get(key, (None, None))
            interval = "" if low is None else f"{percent(low)} – {percent(high)}"
            rows.append([TITLES[key], percent(report[key]), interval])
    text = [f"# {title}\n", f"{report['images']} photos{_unreadable(report)}. {_thresholds(report)}\n"]
    text.append(markdown_table(["Metric (%)", "Value", "95 % interval"], rows))
    if report.get("subsets"):
        parts = [[name, percent(part["macro_f1"]), percent(part["mAP"])] for name, part in report["subsets"].items()]
        text += ["## Subsets of classes\n", markdown_table(["Subset", "Macro F1", "mAP"], parts)]
    text += ["## Classes\n", _classes(report)]
    return "\n".join(text)


def render_run(metrics: Mapping[str, Any]) -> str:
    """Render the metrics of a training run (`metrics.json`) as Markdown, one row per split."""
    splits: Mapping[str, Any] = metrics["splits"]
    keys = list(next(iter(splits.values()))["headline"])
    rows = []
    for split, found in splits.items():
        rows.append([split, str(found["photos"]), *(percent(found["headline"][key]) for key in keys)])
    best = metrics["best"]
    chosen = (
        f"epoch {best['epoch']} of {metrics['epochs']}, selected on {metrics['selected_on']}" if best else "not trained"
    )
    return (
        f"{metrics['method']} on {metrics['backbone']}, {metrics['dataset']}: {chosen}; "
        f"{metrics['learnable_parameters']:,} learnable parameters, {metrics['seconds'] / 60:.1f} min\n\n"
        + markdown_table(["Split (%)", "Photos", *(TITLES[key] for key in keys)], rows)
    )


def write_report(out: Path, name: str, report: Mapping[str, Any], task: Task, title: str) -> None:
    """Write `name.json` and `name.md` into a directory.

    Raises:
        StorageError: They cannot be written.
    """
    write_text(out / f"{name}.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    write_text(out / f"{name}.md", render(report, task, title))


def write_predictions(
    path: Path, scores: Scores, labels: Sequence[str], *, thresholds: Thresholds | None = None
) -> None:
    """Write ids, probabilities and targets as Parquet: columns `score_columns`, and `target: <label>`.

    Thresholds (N, K), which differ from photo to photo, become columns `threshold: <label>`; others are in the report.

    Raises:
        StorageError: It cannot be written.
    """
    columns = {"id": pa.array(scores.ids, pa.string())}
    columns |= {name: pa.array(scores.probabilities[:, k]) for k, name in enumerate(score_columns(labels))}
    columns |= {f"target: {name}": pa.array(scores.targets[:, k]) for k, name in enumerate(labels)}
    levels = np.asarray(thresholds)
    if levels.ndim == 2:
        columns |= {f"{THRESHOLD}{name}": pa.array(levels[:, k]) for k, name in enumerate(labels)}
    with atomic_path(path) as partial:
        pq.write_table(pa.table(columns), partial)


def _unreadable(report: Mapping[str, Any]) -> str:
    count = len(report["unreadable"])
    return f", and {count} unreadable, which are ignored" if count else ""


def _thresholds(report: Mapping[str, Any]) -> str:
    levels = report.get("thresholds")
    if levels is None:
        return "The most probable class is predicted."
    if isinstance(levels, list):
        return "A label is predicted at or above its own threshold (last column)."
    return f"A label is predicted at or above {levels:.2f}."


def _classes(report: Mapping[str, Any]) -> str:
    table = report["per_class"]
    shown = [key for key in ("AP", "f1", "precision", "recall") if key in table]
    counts = [key for key in ("support", "predicted") if key in table]
    rows = []
    for k, name in enumerate(report["labels"]):
        cells = [percent(table[key][k]) for key in shown] + [str(table[key][k]) for key in counts]
        rows.append([name, *cells, *([f"{table['threshold'][k]:.2f}"] if "threshold" in table else [])])
    header = ["Class", *(key.capitalize() if key != "AP" else key for key in shown), *map(str.capitalize, counts)]
    return markdown_table([*header, *(["Threshold"] if "threshold" in table else [])], rows)
