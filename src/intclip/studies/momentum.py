"""Effect of the momentum of MCCL's prototypes: one recipe trained with several values."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from intclip.evaluation.report import markdown_table
from intclip.inference.bundle import load_bundle
from intclip.methods.prototypes import perplexity
from intclip.studies.ablation import Cell
from intclip.studies.studies import Study, StudyRow
from intclip.studies.tables import scored_split

METRICS = ("macro_f1", "micro_f1", "samples_f1", "mAP")


def momentum_study(values: Sequence[float]) -> Study:
    """Make a study with one row per momentum."""
    rows = [
        StudyRow(name=f"momentum {value:g}", set={"method": {"name": "mccl", "options": {"pool": {"momentum": value}}}})
        for value in values
    ]
    return Study(
        title="Momentum of the prototypes",
        metrics=list(METRICS),
        set={"method": {"name": "mccl"}},
        note="Eq. 5: p ← λ p + (1 − λ) x̄.",
        rows=rows,
    )


@dataclass(frozen=True)
class MomentumResult:
    """Results of one momentum, means over seeds.

    Attributes:
        name: Name of the row.
        scores: Metric to its value on the scored split, as a fraction.
        unsteadiness: Standard deviation of validation macro F1 over the second half of the epochs, as a fraction.
        in_use: Stage to the number of prototypes in effective use at the end.
        prototypes: Number of prototypes per stage.
    """

    name: str
    scores: dict[str, float]
    unsteadiness: float
    in_use: dict[int, float]
    prototypes: int


def read_results(cells: Sequence[Cell]) -> list[MomentumResult]:
    """Collect the results of finished cells, row by row; requires kept bundles."""
    names = dict.fromkeys(cell.row for cell in cells if cell.finished)
    return [_read([cell for cell in cells if cell.row == name and cell.finished]) for name in names]


def _read(cells: Sequence[Cell]) -> MomentumResult:
    scores: dict[str, list[float]] = {metric: [] for metric in METRICS}
    use: dict[int, list[float]] = {}
    unsteady = []
    prototypes = 0
    for cell in cells:
        metrics = json.loads((cell.out / "metrics.json").read_text(encoding="utf-8"))
        headline = metrics["splits"][scored_split(metrics)]["headline"]
        for metric in METRICS:
            if headline.get(metric) is not None:
                scores[metric].append(headline[metric])
        unsteady.append(unsteadiness(_epochs(cell.out)))
        state = load_bundle(cell.out / "bundle").state
        for position, stage in enumerate(cell.recipe.method.options.get("stages", (3, 4))):
            usage = torch.from_numpy(state[f"_stages.{position}.pool.usage"])
            prototypes = len(usage)
            use.setdefault(int(stage), []).append(perplexity(usage))
    return MomentumResult(
        cells[0].row,
        {metric: statistics.fmean(values) for metric, values in scores.items() if values},
        statistics.fmean(unsteady),
        {stage: statistics.fmean(values) for stage, values in use.items()},
        prototypes,
    )


def unsteadiness(values: Sequence[float]) -> float:
    """Return the standard deviation of the second half of a series; 0 for fewer than two values."""
    late = values[len(values) // 2 :]
    return statistics.stdev(late) if len(late) > 1 else 0.0


def _epochs(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["metrics"]["macro_f1"] for line in lines if line.get("kind") == "epoch"]


def render(results: Sequence[MomentumResult], command: str) -> str:
    """Render results as Markdown."""
    header = ["Momentum", "Macro F1", "Micro F1", "Samples F1", "mAP", "Macro F1 over epochs, sd", "Prototypes in use"]
    body = [
        [
            result.name.removeprefix("momentum "),
            *(f"{100 * result.scores[metric]:.2f}" if metric in result.scores else "–" for metric in METRICS),
            f"{100 * result.unsteadiness:.2f}",
            ", ".join(f"stage {s}: {n:.0f} of {result.prototypes}" for s, n in result.in_use.items()),
        ]
        for result in results
    ]
    text = f"# Momentum of MCCL's prototypes\n\n    {command}\n\n{markdown_table(header, body)}\n"
    return text + (
        "Percentages, means over seeds. The second-last column is the standard deviation of validation macro F1 over "
        "the\n"
        "second half of the epochs; prototypes in use is the perplexity of the nearest prototypes of patches.\n"
    )
