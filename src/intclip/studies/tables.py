"""A study's results as Markdown, CSV and a plot, next to the paper's figures, with the differences."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from intclip.data.sample import Dataset
from intclip.evaluation.report import TITLES, markdown_table
from intclip.files import atomic_path, write_text
from intclip.studies.ablation import Cell
from intclip.studies.studies import Study

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
"""Setting of IntCLIP's figures (paper §4.1)."""
_DASH = "–"


@dataclass(frozen=True)
class RowResult:
    """One row: published and own figures, in percent.

    Attributes:
        name: Name of the row.
        paper: Metric to its published figure.
        runs: Seed to the content of `metrics.json`.
        failed: Seed of a failed run to its error.
    """

    name: str
    paper: dict[str, float]
    runs: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)

    def values(self, metric: str) -> list[float]:
        """Return own figures of a metric, one per seed, on test, or val if there is no test."""
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
    """Return the split used for a run."""
    return "test" if "test" in metrics["splits"] else "val"


def collect(
    study: Study, cells: Sequence[Cell], dataset: str, failures: Mapping[str, str] | None = None
) -> list[RowResult]:
    """Collect the results of the cells, row by row; `failures` are those of `run_cells`."""
    rows = []
    for row in study.rows:
        result = RowResult(row.name, study.published(row, dataset))
        for cell in cells:
            if cell.row == row.name:
                if cell.finished:
                    result.runs[cell.seed] = json.loads((cell.out / "metrics.json").read_text(encoding="utf-8"))
                else:
                    result.failed[cell.seed] = (failures or {}).get(str(cell.out), "not run")
        if result.paper or result.runs or result.failed:
            rows.append(result)
    return rows


def describe_protocol(cells: Sequence[Cell], dataset: Dataset) -> dict[str, str]:
    """Return the setting of our figures, with the keys of `PAPER_SETTING`; rows may differ in epochs and batch."""
    recipes = [cell.recipe for cell in cells]
    recipe = recipes[0]
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
        "epochs and batch": f"{_span(each.schedule.epochs for each in recipes)}, "
        f"{_span(each.train.batch_size for each in recipes)}",
        "epoch chosen on": evaluate.select if evaluate.select != "last" else "the last one",
        "thresholds": str(evaluate.threshold) if evaluate.thresholds == "fixed" else f"{evaluate.thresholds}, from val",
        "seeds": ", ".join(map(str, dict.fromkeys(cell.seed for cell in cells))),
    }


def write_tables(
    out: Path, name: str, study: Study, rows: Sequence[RowResult], *, command: str, protocol: Mapping[str, str]
) -> list[Path]:
    """Write `name.md`, `name.csv` (one line per run) and, if matplotlib is installed, `name.png`.

    Args:
        out: Directory of the study.
        name: Name of the study.
        study: Its columns and notes.
        rows: From `collect`.
        command: The command that made them.
        protocol: Setting of our figures, with the keys of `PAPER_SETTING`.

    Raises:
        StorageError: They cannot be written.
    """
    write_text(out / f"{name}.md", render_study(study, rows, command=command, protocol=protocol))
    write_text(out / f"{name}.csv", render_csv(study, rows))
    paths = [out / f"{name}.md", out / f"{name}.csv"]
    return [*paths, out / f"{name}.png"] if draw(out / f"{name}.png", study, rows) else paths


def render_study(study: Study, rows: Sequence[RowResult], *, command: str, protocol: Mapping[str, str]) -> str:
    """Render a study as Markdown."""
    shown = _shown(study, rows)
    header = ["Row", *(f"{TITLES[metric]}: paper / ours" for metric in shown), *_COSTS]
    body = [[row.name, *(_pair(row, metric) for metric in shown), *_cost(row)] for row in rows]
    text = [f"# {study.title}\n", f"    {command}\n", markdown_table(header, body)]
    text.append(
        "Percentages; ours are mean ± standard deviation over seeds. Minutes are training time; photos/s is "
        "scoring speed, from cached features if the method can use them; MB is the peak resident memory of a run.\n"
    )
    if failed := [f"- {row.name}, seed {seed}: {reason}\n" for row in rows for seed, reason in row.failed.items()]:
        text.append(f"Not finished; repeat the command to continue:\n\n{''.join(failed)}")
    text += ["## Order of the rows\n", _orders(shown, rows), "## What differs\n", f"{study.note}\n"]
    paper = PAPER_SETTING | dict(study.setting)
    settings = [[key, paper.get(key, _DASH), protocol.get(key, _DASH)] for key in PAPER_SETTING]
    text.append(markdown_table(["", "Paper", "Ours"], settings))
    return "\n".join(text)


def render_csv(study: Study, rows: Sequence[RowResult]) -> str:
    """Render one line per run, and one with the published figures of each row."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    extra = ["learnable_parameters", "seconds", "photos_per_second", "peak_memory_mb"]
    writer.writerow(["row", "source", "seed", *study.metrics, *extra])
    for row in rows:
        if row.paper:
            published = [row.paper.get(metric, "") for metric in study.metrics]
            writer.writerow([row.name, "paper", "", *published, *("" for _ in extra)])
        for seed, metrics in row.runs.items():
            figures = metrics["splits"][scored_split(metrics)]["headline"]
            cells = [f"{100 * figures[m]:.4f}" if figures.get(m) is not None else "" for m in study.metrics]
            costs = [
                metrics["learnable_parameters"],
                metrics["cost"]["training_seconds"],
                _speed(metrics),
                _memory(metrics),
            ]
            writer.writerow([row.name, "ours", seed, *cells, *costs])
    return stream.getvalue()


def draw(path: Path, study: Study, rows: Sequence[RowResult]) -> bool:
    """Plot the paper's figures (hollow) and ours (filled, ± deviation), one panel per metric, one line per row.

    Returns: False, without drawing, if matplotlib is not installed or there are no figures yet.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    shown = _shown(study, rows)
    if not shown:
        return False
    figure = Figure(figsize=(2.4 + 2.3 * len(shown), 1.3 + 0.28 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    places = list(range(len(rows)))
    for axes, metric in zip(panels, shown, strict=True):
        for place in places[::2]:
            axes.axhspan(place - 0.5, place + 0.5, color="0.95", linewidth=0, zorder=0)
        paper = [row.paper.get(metric, math.nan) for row in rows]
        ours = [math.nan if (mean := row.mean(metric)) is None else mean for row in rows]
        spread = [row.deviation(metric) or 0.0 for row in rows]
        axes.plot(paper, places, "o", markerfacecolor="white", markeredgecolor="0.4", label="paper")
        axes.errorbar(ours, places, xerr=spread, fmt="o", color="tab:blue", markersize=5, capsize=2, label="ours")
        axes.set_title(f"{TITLES[metric]} (%)", fontsize="medium")
        axes.grid(axis="x", alpha=0.4)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, [row.name for row in rows])
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle(study.title, x=0.01, ha="left")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=150)
    return True


def _pair(row: RowResult, metric: str) -> str:
    paper, mean, deviation = row.paper.get(metric), row.mean(metric), row.deviation(metric)
    ours = _DASH if mean is None else f"{mean:.2f}" + (f" ± {deviation:.2f}" if deviation is not None else "")
    return f"{_DASH if paper is None else f'{paper:.2f}'} / {ours}"


def _shown(study: Study, rows: Sequence[RowResult]) -> list[str]:
    """Return the available metrics; if nothing was run, the published ones."""
    ours = [metric for metric in study.metrics if any(row.values(metric) for row in rows)]
    return ours or [metric for metric in study.metrics if any(metric in row.paper for row in rows)]


_COSTS = ("Learnable", "Minutes", "Photos/s", "MB")


def _cost(row: RowResult) -> list[str]:
    """Return a row's costs for `_COSTS`: means over seeds, the largest memory."""
    runs = list(row.runs.values())
    if not runs:
        return [_DASH] * len(_COSTS)
    minutes = statistics.fmean(run["cost"]["training_seconds"] for run in runs) / 60
    speeds = [speed for run in runs if (speed := _speed(run)) is not None]
    peaks = [peak for run in runs if (peak := _memory(run)) is not None]
    return [
        f"{runs[0]['learnable_parameters']:,}",
        f"{minutes:.1f}",
        f"{statistics.fmean(speeds):,.0f}" if speeds else _DASH,
        f"{max(peaks):,.0f}" if peaks else _DASH,
    ]


def _speed(metrics: Mapping[str, Any]) -> float | None:
    """Return photos/s of scoring the split; None in runs of versions that did not record it."""
    speed: float | None = metrics.get("cost", {}).get("photos_per_second", {}).get(scored_split(metrics))
    return speed


def _memory(metrics: Mapping[str, Any]) -> float | None:
    peak: float | None = metrics.get("cost", {}).get("peak_memory_mb")
    return peak


def _span(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def _orders(shown: Sequence[str], rows: Sequence[RowResult]) -> str:
    """Report, for each metric, how many pairs of rows have the paper's order, and which do not."""
    lines = []
    for metric in shown:
        both = [row for row in rows if metric in row.paper and row.mean(metric) is not None]
        pairs = [pair for pair in combinations(both, 2) if pair[0].paper[metric] != pair[1].paper[metric]]
        if not pairs:
            continue
        turned = [_better_first(pair, metric) for pair in pairs if not _same_order(pair, metric)]
        line = f"- {TITLES[metric]}: {len(pairs) - len(turned)} of {len(pairs)} pairs have the paper's order"
        if turned:
            named = "; ".join(f"{better.name} over {worse.name}" for better, worse in turned[:6])
            line += f". Reversed: {named}" + (f"; and {len(turned) - 6} more" if len(turned) > 6 else "")
        lines.append(line)
    return "\n".join(lines or ["No two rows have both published and own figures."]) + "\n"


def _same_order(pair: tuple[RowResult, RowResult], metric: str) -> bool:
    better, worse = _better_first(pair, metric)
    return (better.mean(metric) or 0.0) > (worse.mean(metric) or 0.0)


def _better_first(pair: tuple[RowResult, RowResult], metric: str) -> tuple[RowResult, RowResult]:
    return (pair[0], pair[1]) if pair[0].paper[metric] > pair[1].paper[metric] else (pair[1], pair[0])
