"""`intclip benchmark`: speed of a model on this machine."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import Checkpoint, Device, Labels, PrecisionOption, writable_file

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
    taxonomy: Labels = None,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    precision: PrecisionOption = "f32",
    batch_size: Annotated[int, typer.Option(min=1, help="Photos per batch.")] = 32,
    seconds: Annotated[float, typer.Option(min=0.1, help="Approximate measuring time per figure.")] = 3.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Compute threads; default: all cores.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[
        Path | None, typer.Option(callback=writable_file, help="Write the report to this JSON file.")
    ] = None,
) -> None:
    """Measure a model's speed on this machine.

    Reports loading time and, for each engine, photos/s, the time of one photo, and photos/s from files. Close other
    programs first: they slow everything down. `load s` is the time from a cold start to the first answer;
    `photos/s` and `one photo ms` are computation only; `from files/s` includes reading and resizing.

    Examples:

    intclip benchmark

    intclip benchmark zero-shot:RN101 --checkpoint RN101.pt --engines torch,onnx

    intclip benchmark runs/my-model --photos album/ --out speed.json
    """
    from intclip.data.images import find_images
    from intclip.errors import IntclipError
    from intclip.files import is_stdout, write_text
    from intclip.inference.loading import load
    from intclip.inference.speed import installed_engines, measure

    chosen = [name.strip() for name in engines.split(",") if name.strip()] or installed_engines()
    if unknown := sorted(set(chosen) - {"torch", "openvino", "onnx"}):
        raise IntclipError(f"unknown engine {unknown[0]!r}: choose torch, openvino or onnx")
    report = measure(
        lambda engine: load(
            model,
            taxonomy=taxonomy,
            checkpoint=checkpoint,
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
        ),
        chosen,
        photos=find_images(photos) if photos else (),
        batch_size=batch_size,
        seconds=seconds,
        announce=_announce,
    )
    report = {"model": model, "precision": precision, **report}
    text = json.dumps(report, indent=2, ensure_ascii=False)
    if out is not None:
        write_text(out, text + "\n")
    if as_json:
        print(text)
    elif out is None or not is_stdout(out):
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
