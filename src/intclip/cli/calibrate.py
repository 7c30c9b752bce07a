"""`intclip calibrate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def calibrate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a file of predictions (Parquet).")],
    split: Annotated[str, typer.Option(help="Whose predictions, in a folder; one that was not trained on.")] = "val",
    miss_rate: Annotated[
        float, typer.Option("--miss-rate", min=0.001, max=0.999, help="Share of true labels that sets may miss.")
    ] = 0.1,
    shrinkage: Annotated[
        float,
        typer.Option(min=0, max=1e6, help="Imagined positives that draw a label's threshold to the global one."),
    ] = 10,
    bins: Annotated[int, typer.Option(min=2, help="Bins of the calibration error and of the plot.")] = 15,
    positive_share: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="From which share of votes on a label counts as true; the run's own by default."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Which halves.")] = 0,
    write: Annotated[
        bool, typer.Option("--write", help="Give the run's bundle the temperature, fitted on the whole split.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of report and plot; the run's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """How far the probabilities can be trusted: calibration error, label sets, thresholds per label.

    Everything is fitted on one half of a split's photos and reported on the other: the expected calibration error and
    Brier score as they are, after a temperature, and after an isotonic map; coverage and size of label sets that
    promise a miss rate; F1 of one threshold, of one a label, and of those drawn to the one. Leaves
    calibration-SPLIT.json, .md and .png (reliability curves).

    With --write the run's bundle gets a temperature, and its thresholds move along: its probabilities can then be read
    as shares of votes, and its decisions stay. The run's saved predictions and reports are written anew to match.

    Examples:

    intclip calibrate runs/proxy

    intclip calibrate runs/proxy --write

    intclip calibrate runs/proxy --miss-rate 0.05 --seed 3 --json

    intclip calibrate report/predictions-val.parquet --out report
    """
    from intclip.errors import DatasetError
    from intclip.evaluation.calibrated import (
        calibration_report,
        draw_calibration,
        fitted_temperature,
        positive_share_of,
        read_predictions,
        render_calibration,
        report_text,
        write_temperature,
    )
    from intclip.files import write_text

    if not run.exists():
        raise DatasetError(f"{run}: no such file or folder; give a run's folder or a predictions-SPLIT.parquet")
    path = run / f"predictions-{split}.parquet" if run.is_dir() else run
    name = path.stem.removeprefix("predictions-")
    folder = out or path.parent
    bundle = run / "bundle"
    if write and not bundle.is_dir():
        raise DatasetError(f"{run} holds no bundle; --write takes the folder of a training run")
    share = positive_share if positive_share is not None else positive_share_of(path)
    predictions = read_predictions(path)
    report = calibration_report(
        predictions,
        miss_rate=miss_rate,
        shrinkage=shrinkage,
        bins=bins,
        positive_share=share,
        seed=seed,
    )
    title = f"{path.parent.name}, {name}"
    draw_calibration(report, folder / f"calibration-{name}.png", title)
    write_text(folder / f"calibration-{name}.md", render_calibration(report, title))
    write_text(folder / f"calibration-{name}.json", report_text(report))
    if write:  # last: it can be done once, and only once everything else is written
        temperature = fitted_temperature(predictions)
        rewritten = write_temperature(run, temperature)
        print(
            f"{bundle} now divides its logits by {temperature:.3f}; predictions and reports in {run} follow "
            f"({', '.join(rewritten)})",
            file=sys.stderr,
        )
    print(report_text(report) if as_json else render_calibration(report, title), end="")
