"""`intclip benchmark`: speed of a model on this machine."""

import sys
from typing import Annotated

import typer

from intclip.cli.options import AsJson, BatchSize, Checkpoint, Device, PrecisionOption, Threads

_COLUMNS = {
    "load_s": "load s",
    "photos_per_s": "photos/s",
    "one_photo_ms": "one photo ms",
    "from_files_per_s": "from files/s",
}


def benchmark(
    model: Annotated[str, typer.Argument(help="A model, as for `predict --model`.")] = "lite",
    photos: Annotated[
        list[str] | None, typer.Option("--photos", help="Photos, folders or patterns; default: generated JPEGs.")
    ] = None,
    engines: Annotated[str, typer.Option(help="Engines to compare, separated by commas; default: all installed.")] = "",
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: PrecisionOption = "f32",
    batch_size: BatchSize = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate measuring time per figure.")] = 3.0,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model's speed on this machine.

    Reports loading time and, for each engine, photos/s, the time of one photo, and photos/s from files. Close other
    programs first: they slow everything down. `load s` is the time from a cold start to the first answer;
    `photos/s` and `one photo ms` are computation only; `from files/s` includes reading and resizing.

    Examples:

    intclip benchmark

    intclip benchmark zero-shot:RN101 --checkpoint RN101.pt --engines torch,onnx

    intclip benchmark runs/my-model --photos album/ --json > speed.json
    """
    from intclip.cli.common import print_json
    from intclip.data.images import find_images
    from intclip.errors import IntclipError
    from intclip.inference.loading import load
    from intclip.inference.speed import installed_engines, measure

    chosen = [name.strip() for name in engines.split(",") if name.strip()] or installed_engines()
    if unknown := sorted(set(chosen) - {"torch", "openvino", "onnx"}):
        raise IntclipError(f"unknown engine {unknown[0]!r}: choose torch, openvino or onnx")
    report = measure(
        lambda engine: load(
            model, checkpoint=checkpoint, engine=engine, device=device, precision=precision, threads=threads
        ),
        chosen,
        photos=find_images(photos) if photos else (),
        batch_size=batch_size,
        seconds=seconds,
        announce=_announce,
    )
    report = {"model": model, "precision": precision, **report}
    if as_json:
        print_json(report)
    else:
        _print_table(report)


def _announce(what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{what}", end="", file=sys.stderr, flush=True)


def _print_table(report: dict[str, dict[str, dict[str, object]]]) -> None:
    from intclip.cli.common import print_table

    _announce("")
    machine = report["machine"]
    print(f"{report['model']} on {machine['processor']}, {machine['cores']} cores, batches of {report['batch_size']}")
    rows = [[engine, *(result[key] for key in _COLUMNS)] for engine, result in report["engines"].items()]
    print_table(["engine", *_COLUMNS.values()], rows)
