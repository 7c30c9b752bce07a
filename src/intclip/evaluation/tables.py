"""A study's results as Markdown, CSV and a plot: the paper's figures beside ours, and what differs."""

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from intclip.data.sample import Dataset
from intclip.evaluation.ablation import Cell
from intclip.evaluation.report import TITLES, markdown_table
from intclip.evaluation.studies import Study
from intclip.files import atomic_path, write_text
from intclip.training.recipe import Recipe

PAPER_SETTING = {
    "dataset": "Intentonomy",
    "photos": "12,740 / 498 / 1,217",
    "split": "Intentonomy test",
    "backbone": "CLIP RN101",
    "weights": "OpenAI's",
    "epochs and batch": "50, 32",
    "epoch chosen on": "not said; test in the released code",
    "thresholds": "not said; 0.5 in the released code",
    "seeds": "not said",
}
"""What IntCLIP's figures were obtained with (paper §4.1)."""
_DASH = "–"


@dataclass(frozen=True)
class RowResult:
    """One row: published and own figures, in percent.

    Attributes:
        name: Of the row.
        paper: Metric to its published figure.
        runs: Seed to the content of `metrics.json`.
        failed: Seeds whose run failed.
    """

    name: str
    paper: dict[str, float]
    runs: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failed: list[int] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """Own figures of a metric, a seed each; of the test split, or val where there is no test."""
        found = []
        for metrics in self.runs.values():
            value = metrics["splits"][scored_split(metrics)]["headline"].get(metric)
            if value is not None:
                found.append(100 * value)
        return found

    def mean(self, metric: str) -> float | None:
        """Mean over seeds."""
        values = self.values(metric)
        return statistics.fmean(values) if values else None

    def deviation(self, metric: str) -> float | None:
        """Standard deviation over seeds (n − 1); None for fewer than two."""
        values = self.values(metric)
        return statistics.stdev(values) if len(values) > 1 else None


def scored_split(metrics: Mapping[str, Any]) -> str:
    """The split that a run is judged by."""
    return "test" if "test" in metrics["splits"] else "val"


def collect(study: Study, cells: Sequence[Cell], dataset: str) -> list[RowResult]:
    """What the cells left, row by row, in the order of the study."""
    rows = []
    for row in study.rows:
        result = RowResult(row.name, study.published(row, dataset))
        for cell in cells:
            if cell.row == row.name:
                if cell.finished:
                    result.runs[cell.seed] = json.loads((cell.out / "metrics.json").read_text(encoding="utf-8"))
                else:
                    result.failed.append(cell.seed)
        if result.paper or result.runs or result.failed:
            rows.append(result)
    return rows


def describe_protocol(recipe: Recipe, dataset: Dataset, seeds: Sequence[int]) -> dict[str, str]:
    """What our figures are obtained with, under the keys of `PAPER_SETTING`."""
    data, evaluate = recipe.data, recipe.evaluate
    lengths = [len(dataset.splits.get(split or "", [])) for split in (data.train, data.val, data.test)]
    counts = [min(length, data.limit or length) for length in lengths]
    scored = data.test or data.val or f"{data.holdout:.0%} of {data.train}"
    held_out = "" if counts[1] else f", val {data.holdout:.0%} of train"
    return {
        "dataset": dataset.name,
        "photos": " / ".join(f"{count:,}" for count in counts) + held_out,
        "split": f"{dataset.name} {scored}",
        "backbone": recipe.backbone.name,
        "weights": recipe.backbone.checkpoint or "the registry's",
        "epochs and batch": f"{recipe.schedule.epochs}, {recipe.train.batch_size}",
        "epoch chosen on": evaluate.select if evaluate.select != "last" else "the last one",
        "thresholds": str(evaluate.threshold) if evaluate.thresholds == "fixed" else f"{evaluate.thresholds}, from val",
        "seeds": ", ".join(map(str, seeds)),
    }


def write_tables(
    out: Path, name: str, study: Study, rows: Sequence[RowResult], *, command: str, protocol: Mapping[str, str]
) -> list[Path]:
    """Write `name.md`, `name.csv` (a line a run) and, where matplotlib is installed, `name.png`.

    Args:
        out: Directory of the study.
        name: Of the study.
        study: Its columns and notes.
        rows: Of `collect`.
        command: That made them.
        protocol: What ours were obtained with, under the keys of `PAPER_SETTING`.

    Raises:
        StorageError: They cannot be written.
    """
    write_text(out / f"{name}.md", render_study(study, rows, command=command, protocol=protocol))
    write_text(out / f"{name}.csv", render_csv(study, rows))
    paths = [out / f"{name}.md", out / f"{name}.csv"]
    return [*paths, out / f"{name}.png"] if draw(out / f"{name}.png", study, rows) else paths


def render_study(study: Study, rows: Sequence[RowResult], *, command: str, protocol: Mapping[str, str]) -> str:
    """A study as Markdown."""
    shown = [metric for metric in study.metrics if any(metric in row.paper or row.values(metric) for row in rows)]
    header = ["Row", *(f"{TITLES[metric]}: paper / ours" for metric in shown), "Learnable", "Minutes"]
    body = [[row.name, *(_pair(row, metric) for metric in shown), *_cost(row)] for row in rows]
    text = [f"# {study.title}\n", f"    {command}\n", markdown_table(header, body)]
    text.append("Percent; ours are the mean ± standard deviation over seeds.\n")
    if failed := [f"{row.name} (seed {seed})" for row in rows for seed in row.failed]:
        text.append(f"Not finished: {', '.join(failed)}. The same command goes on with them.\n")
    text += ["## Order of the rows\n", _orders(shown, rows), "## What differs\n", f"{study.note}\n"]
    paper = PAPER_SETTING | dict(study.setting)
    settings = [[key, paper.get(key, _DASH), protocol.get(key, _DASH)] for key in PAPER_SETTING]
    text.append(markdown_table(["", "Paper", "Ours"], settings))
    return "\n".join(text)


def render_csv(study: Study, rows: Sequence[RowResult]) -> str:
    """A line for each run, and one with the published figures of each row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    extra = ["learnable_parameters", "seconds"]
    writer.writerow(["row", "source", "seed", *study.metrics, *extra])
    for row in rows:
        if row.paper:
            writer.writerow([row.name, "paper", "", *(row.paper.get(metric, "") for metric in study.metrics), "", ""])
        for seed, metrics in row.runs.items():
            figures = metrics["splits"][scored_split(metrics)]["headline"]
            cells = [f"{100 * figures[m]:.4f}" if figures.get(m) is not None else "" for m in study.metrics]
            writer.writerow([row.name, "ours", seed, *cells, *(metrics[key] for key in extra)])
    return stream.getvalue()


def draw(path: Path, study: Study, rows: Sequence[RowResult]) -> bool:
    """Plot the paper's figures (hollow) beside ours (filled, ± deviation), one panel a metric.

    Returns:
        False where matplotlib is not installed; nothing is drawn then.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    shown = [metric for metric in study.metrics if any(metric in row.paper or row.values(metric) for row in rows)]
    figure = Figure(figsize=(2.2 + 2.6 * len(shown), 1.2 + 0.34 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    places = list(range(len(rows)))
    for number, metric in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), number + 1)
        paper = [row.paper.get(metric, math.nan) for row in rows]
        ours = [row.mean(metric) for row in rows]
        spread = [row.deviation(metric) or 0.0 for row in rows]
        axes.plot(paper, places, "o", markerfacecolor="none", color="tab:gray", label="paper")
        values = [math.nan if value is None else value for value in ours]
        axes.errorbar(values, places, xerr=spread, fmt="o", color="tab:blue", capsize=2, label="ours")
        axes.set_yticks(places, [row.name for row in rows] if number == 0 else [])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(f"{TITLES[metric]} (%)")
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].legend(loc="best", fontsize="small")
    figure.suptitle(study.title)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    return True


def _pair(row: RowResult, metric: str) -> str:
    paper, mean, deviation = row.paper.get(metric), row.mean(metric), row.deviation(metric)
    ours = _DASH if mean is None else f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    return f"{_DASH if paper is None else f'{paper:.2f}'} / {ours}"


def _cost(row: RowResult) -> list[str]:
    if not row.runs:
        return [_DASH, _DASH]
    runs = list(row.runs.values())
    minutes = statistics.fmean(run["seconds"] for run in runs) / 60
    return [f"{runs[0]['learnable_parameters']:,}", f"{minutes:.1f}"]


def _orders(shown: Sequence[str], rows: Sequence[RowResult]) -> str:
    """For each metric, how many pairs of rows stand in ours as in the paper, and which do not."""
    lines = []
    for metric in shown:
        both = [row for row in rows if metric in row.paper and row.mean(metric) is not None]
        pairs = [pair for pair in combinations(both, 2) if pair[0].paper[metric] != pair[1].paper[metric]]
        if not pairs:
            continue
        turned = [_better_first(pair, metric) for pair in pairs if not _same_order(pair, metric)]
        line = f"- {TITLES[metric]}: {len(pairs) - len(turned)} of {len(pairs)} pairs stand as in the paper"
        if turned:
            named = "; ".join(f"{better.name} over {worse.name}" for better, worse in turned[:6])
            line += f". Not in ours: {named}" + (f"; and {len(turned) - 6} more" if len(turned) > 6 else "")
        lines.append(line)
    return "\n".join(lines or ["No two rows have both published and own figures."]) + "\n"


def _same_order(pair: tuple[RowResult, RowResult], metric: str) -> bool:
    better, worse = _better_first(pair, metric)
    return (better.mean(metric) or 0.0) > (worse.mean(metric) or 0.0)


def _better_first(pair: tuple[RowResult, RowResult], metric: str) -> tuple[RowResult, RowResult]:
    return (pair[0], pair[1]) if pair[0].paper[metric] > pair[1].paper[metric] else (pair[1], pair[0])
