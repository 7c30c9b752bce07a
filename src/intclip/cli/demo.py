"""`intclip demo`: the main jobs, one after the other, offline, on real photos and drawings from installed packages."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intclip.inference.predictor import Predictor
    from intclip.labels import Taxonomy


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report and the training run.")] = Path("demo"),
    train: Annotated[bool, typer.Option("--train/--no-train", help="Train on 600 OpenMoji drawings as well.")] = True,
) -> None:
    """Show what intclip does, offline: intents without training, a trained model, a report, a short training run.

    intclip demo --out demo
    """
    import shutil

    from intclip.data.demo_photos import demo_photos
    from intclip.files import make_directory
    from intclip.inference.loading import load
    from intclip.reports.report import write_folder_report

    started = time.monotonic()
    photos = demo_photos()
    make_directory(out)

    print(f"1. Why were these {len(photos)} photos taken? 28 intents of Intentonomy, zero-shot, backbone lite")
    zero_shot = load("lite")
    _table(zero_shot, photos)
    print(f"   ({zero_shot.note})")

    print(
        "\n2. The same photos by IntCLIP with both branches, trained on 16 intents read from captions (proxy intents)"
    )
    trained = load("proxy")
    _table(trained, photos)

    print("\n3. Reports with evidence maps")
    for name, predictor in (("report.html", zero_shot), ("report-proxy.html", trained)):
        write_folder_report(photos, predictor, out / name)
        print(f"   {out / name}")

    if train:
        print("\n4. Training on 600 OpenMoji drawings: Unicode's subcategories as labels, its categories as parents")
        shutil.rmtree(out / "run", ignore_errors=True)
        _train(out / "run")
    print(f"\ndone in {time.monotonic() - started:.0f} s")


def _table(predictor: "Predictor", photos: list[Path]) -> None:
    from intclip.inference.display import UNCLEAR

    for path, prediction in zip(photos, predictor.predict(photos), strict=True):
        best = ", ".join(f"{name} {probability:.2f}" for name, probability in prediction.top(3))
        print(f"   {path.stem:<20} {best if prediction.clear else f'{UNCLEAR}; nearest: {best}'}")


def _train(folder: Path) -> None:
    from intclip.evaluation.saved import read_evaluation
    from intclip.labels import load_taxonomy
    from intclip.training import load_recipe, train

    result = train(load_recipe("demo"), folder)
    figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in result.headline("test").items())
    taxonomy, found = load_taxonomy("openmoji"), read_evaluation(folder)
    above = 100 * parent_accuracy(taxonomy, found.probabilities, found.targets)
    print(f"   test: {figures} (percent), {len(taxonomy)} subcategories")
    print(f"   the same lifted to their {taxonomy.membership(1).shape[1]} categories: accuracy {above:.1f}")
    print(f"   model: {result.bundle}")


def parent_accuracy(
    taxonomy: "Taxonomy", probabilities: "npt.NDArray[np.float32]", targets: "npt.NDArray[np.float32]"
) -> float:
    """How often the right parent is the most probable, as a share; the labels (N, K) exclude each other."""
    found, true = (taxonomy.lift(values, 1, "sum").argmax(axis=1) for values in (probabilities, targets))
    return float((found == true).mean())
