"""`intclip calibrate`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, writable_folder


def calibrate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a file of predictions (Parquet).")],
    split: Annotated[str, typer.Option(help="Split whose predictions to use; not one used for training.")] = "val",
    miss_rate: Annotated[
        float, typer.Option("--miss-rate", min=0.001, max=0.999, help="Share of true labels that label sets may miss.")
    ] = 0.1,
    positive_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Smallest share of votes of a positive label; default: the run's."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the halves.")] = 0,
    write: Annotated[
        bool, typer.Option("--write", help="Store the temperature, fitted on the whole split, in the run's bundle.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Folder for report and plot; default: the run's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure and improve calibration, label sets and thresholds.

    Fits on one half of a split's photos and reports on the other: expected calibration error and Brier score
    uncalibrated, with a temperature, and with isotonic regression; coverage and size of conformal label sets; F1 with a
    global threshold, per-label thresholds, and shrunk per-label thresholds. Writes calibration-SPLIT.json, .md and .png
    (reliability curves).

    --write stores a temperature in the run's bundle, so that probabilities estimate shares of votes.
    Thresholds are adjusted, so predicted labels stay the same. The run's saved predictions and reports are updated.

    Examples:

    intclip calibrate runs/proxy

    intclip calibrate runs/proxy --write

    intclip calibrate runs/proxy --miss-rate 0.05 --seed 3 --json

    intclip calibrate report/predictions-val.parquet --out report
    """
    from intclip.errors import DatasetError
    from intclip.evaluation.calibration_report import (
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
        raise DatasetError(f"{run} has no bundle; --write needs the folder of a training run")
    share = positive_share if positive_share is not None else positive_share_of(path)
    predictions = read_predictions(path)
    report = calibration_report(predictions, miss_rate=miss_rate, positive_share=share, seed=seed)
    title = f"{path.parent.name}, {name}"
    draw_calibration(report, folder / f"calibration-{name}.png", title)
    write_text(folder / f"calibration-{name}.md", render_calibration(report, title))
    write_text(folder / f"calibration-{name}.json", report_text(report))
    if write:  # last: it is irreversible, so everything else must be written before
        temperature = fitted_temperature(predictions)
        rewritten = write_temperature(run, temperature)
        print(
            f"{bundle} now divides its logits by {temperature:.3f}; updated in {run}: ({', '.join(rewritten)})",
            file=sys.stderr,
        )
    print(report_text(report) if as_json else render_calibration(report, title), end="")
