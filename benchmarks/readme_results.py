"""Results of the study `methods-lite` for the methods' READMEs and docs/results.md.

    python -m benchmarks.readme_results             # writes the results section of every
    src/intclip/methods/*/README.md
    python -m benchmarks.readme_results --tables    # prints the tables of all rows, for docs/results.md

Figures come from docs/figures/methods-lite-DATASET.csv, written by `intclip ablate methods-lite`. Datasets without that
file are left out.
"""

import argparse
import csv
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from intclip.evaluation.report import TITLES, markdown_table
from intclip.files import write_text
from intclip.studies.studies import load_study
from intclip.training.recipe_file import method_training

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "src" / "intclip" / "methods"
STUDY = "methods-lite"
DATASETS = {
    "proxy": ("proxy intents", "--data-root flickr8k --set data.limit=2000"),
    "proxy16": ("proxy intents, 16 labels", "--data-root flickr8k --set data.limit=2000"),
    "memes": ("memes", "--set data.name=memes"),
    "mvsa": ("MVSA", "--set data.name=mvsa --data-root mvsa --set data.limit=300"),
}
"""Title and command options of each dataset, by suffix of its CSV file."""
METRICS = ("macro_f1", "micro_f1", "samples_f1", "mAP", "accuracy")
PUBLISHED = METRICS[:4]
BEGIN, END = "<!-- written by python -m benchmarks.readme_results -->", "<!-- end of what is written -->"
_DASH = "–"
_FEW = 8


@dataclass(frozen=True)
class Measured:
    """One row of the study on one dataset, from its CSV file.

    Attributes:
        runs: One line per seed.
        published: Published figures by metric, in percent, as text; "" if there is none.
    """

    runs: list[Mapping[str, str]] = field(default_factory=list)
    published: dict[str, str] = field(default_factory=dict)

    def values(self, column: str) -> list[float]:
        """Return a column's numbers, of the runs that have one."""
        return [float(run[column]) for run in self.runs if run[column]]

    def spread(self, metric: str) -> str:
        """Return mean ± standard deviation (n − 1) over seeds; only the value for one seed, a dash for none."""
        values = self.values(metric)
        if not values:
            return _DASH
        return f"{statistics.fmean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


Figures = dict[str, dict[str, Measured]]
"""The study's rows by name, by dataset (key of `DATASETS`)."""


def read_figures(folder: Path) -> Figures:
    """Read the available CSV files; each has every row of the study, measured or not."""
    found: Figures = {}
    for dataset in DATASETS:
        path = folder / f"{STUDY}-{dataset}.csv"
        if not path.is_file():
            continue
        rows = {row.name: Measured() for row in load_study(STUDY).rows}
        with path.open(encoding="utf-8", newline="") as lines:
            for line in csv.DictReader(lines):
                if line["source"] == "ours":
                    rows[line["row"]].runs.append(line)
                else:
                    rows[line["row"]].published.update({metric: line[metric] for metric in PUBLISHED})
        found[dataset] = rows
    return found


def rows_of_methods() -> dict[str, list[str]]:
    """Return the study's rows that train each method, by method; some have none."""
    rows: dict[str, list[str]] = {readme.parent.name: [] for readme in sorted(FOLDER.glob("*/README.md"))}
    for row in load_study(STUDY).rows:
        assert row.recipe is not None, row.name
        rows[method_training(row.recipe)["method"]["name"]].append(row.name)
    return rows


def command(dataset: str, measured: Sequence[Measured], rows: Sequence[str] = ()) -> str:
    """Return the command for the figures of some rows of a dataset; without names, of all rows."""
    seeds = sorted({int(run["seed"]) for each in measured for run in each.runs})
    chosen = "".join(f" --row {shlex.quote(row)}" for row in rows)
    listed = ",".join(map(str, seeds))
    data = DATASETS[dataset][1]
    return f"intclip ablate {STUDY} --recipe proxy-lite {data} --seeds {listed}{chosen} --set evaluate.bootstrap=0"


def block(rows: Sequence[str], figures: Figures) -> str:
    """Render the results section of a README: scores of some rows on every dataset, and the commands."""
    lines: list[tuple[str, Measured]] = []
    commands = []
    for dataset, measured in figures.items():
        there = [row for row in rows if measured[row].runs]
        for row in there:
            title = DATASETS[dataset][0]
            lines.append((f"{row}, {title}" if len(rows) > 1 else title, measured[row]))
        if there:
            commands.append(f"    {command(dataset, [measured[row] for row in there], there)}\n")
    if not lines:
        return f"{BEGIN}\nNot measured: the study `{STUDY}` has no run of it.\n{END}\n"
    shown = [metric for metric in METRICS if any(each.values(metric) for _, each in lines)]
    table = markdown_table(
        ["data", *(TITLES[metric] for metric in shown), "seeds"],
        [[title, *(each.spread(metric) for metric in shown), str(len(each.runs))] for title, each in lines],
    )
    text = (
        f"Backbone `lite`, few photos and epochs, as in the study `{STUDY}`; percentages, mean ± standard deviation\n"
        "over seeds. All methods, with costs: [docs/results.md](../../../../docs/results.md).\n"
    )
    return f"{BEGIN}\n{text}\n{table}\n{''.join(commands)}\n{END}\n"


def with_block(readme: str, written: str) -> str:
    """Return a README with its results section replaced or added."""
    if BEGIN not in readme:
        return f"{readme.rstrip()}\n\n## Results\n\n{written}"
    before, _, rest = readme.partition(BEGIN)
    return before + written + rest.partition(f"{END}\n")[2]


def readmes(figures: Figures) -> dict[Path, str]:
    """Return the expected content of every method's README."""
    texts = {}
    for method, rows in rows_of_methods().items():
        path = FOLDER / method / "README.md"
        texts[path] = with_block(path.read_text(encoding="utf-8"), block(rows, figures))
    return texts


def table(dataset: str, measured: Mapping[str, Measured]) -> str:
    """Render a dataset's measured rows: command, scores, published figures and costs."""
    measured = {name: each for name, each in measured.items() if each.runs}
    shown = [metric for metric in METRICS if any(each.values(metric) for each in measured.values())]
    beside = dataset == "proxy"  # published figures are for intents
    published = [f"published: {', '.join(TITLES[metric] for metric in PUBLISHED)}"] if beside else []
    header = [
        "row",
        *(TITLES[metric] for metric in shown),
        "seeds",
        *published,
        "learnable",
        "minutes",
        "photos/s",
        "MB",
    ]
    lines = []
    for name, each in measured.items():
        scores = [each.spread(metric) for metric in shown]
        lines.append([name, *scores, str(len(each.runs)), *([_published(each)] if beside else []), *_costs(each)])
    # The command names the rows if there are few; otherwise it is that of the whole study.
    named = list(measured) if len(measured) < _FEW else []
    return f"    {command(dataset, list(measured.values()), named)}\n\n{markdown_table(header, lines)}"


def _published(row: Measured) -> str:
    figures = [row.published.get(metric, "") for metric in PUBLISHED]
    return " / ".join(f"{float(figure):.2f}" if figure else _DASH for figure in figures) if any(figures) else _DASH


def _costs(row: Measured) -> list[str]:
    """Return means over seeds of uninterrupted runs, and the largest memory."""
    seconds, speeds, peaks = (row.values(name) for name in ("seconds", "photos_per_second", "peak_memory_mb"))
    return [
        f"{int(row.runs[0]['learnable_parameters']):,}",
        f"{statistics.fmean(seconds) / 60:.1f}" if seconds else _DASH,
        f"{statistics.fmean(speeds):,.0f}" if speeds else _DASH,
        f"{max(peaks):,.0f}" if peaks else _DASH,
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tables", action="store_true", help="print the tables of all rows, and write nothing")
    figures = read_figures(ROOT / "docs" / "figures")
    if options.parse_args().tables:
        print("\n".join(f"### {DATASETS[dataset][0]}\n\n{table(dataset, rows)}" for dataset, rows in figures.items()))
        return
    for path, text in readmes(figures).items():
        write_text(path, text)


if __name__ == "__main__":
    main()
