"""`intclip export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from intclip.cli.options import MODELS, LabelOptions, load_model, with_options, writable_file

Format = Literal["onnx", "openvino"]


@with_options
def export(
    model: Annotated[str, typer.Argument(help=MODELS)],
    out: Annotated[
        Path,
        typer.Option(callback=writable_file, help="File to write: .onnx, or .xml for OpenVINO (plus a .bin file)."),
    ],
    format: Annotated[Format | None, typer.Option(help="Default: by the file's suffix.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Include the evidence maps as outputs.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to int8; OpenVINO only; needs --calibrate.")] = False,
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder with a few hundred typical photos, for --int8.")
    ] = None,
    *,
    labels: LabelOptions,
) -> None:
    """Export a model to a file that runs without intclip.

    The file includes labels, preprocessing and thresholds. See examples/predict_onnx.py.

    intclip export lite --out lite.onnx

    intclip export runs/my-model --out model.xml --int8 --calibrate photos/
    """
    from intclip.errors import IntclipError
    from intclip.files import is_stream
    from intclip.inference.exported import SUFFIXES, check_suffix

    wanted = format or SUFFIXES.get(out.suffix)
    if wanted is None or is_stream(out):
        raise IntclipError(f"{out}: name the file *.onnx or *.xml")
    check_suffix(out, wanted)
    if int8 and (wanted != "openvino" or calibrate is None):
        raise IntclipError("--int8 writes OpenVINO (*.xml) and needs --calibrate FOLDER with a few hundred photos")
    if calibrate is not None and not int8:
        raise IntclipError("--calibrate needs --int8; add it, or remove --calibrate for float32")
    # Torch where the format allows: with another engine the model would be converted for that one as well.
    in_torch = wanted == "onnx" and Path(model).suffix not in SUFFIXES
    predictor = load_model(model, labels, engine="openvino" if int8 else "torch" if in_torch else "auto", device="cpu")
    if int8 and calibrate is not None:
        predictor = predictor.quantize(calibrate)
    predictor.export(out, wanted, maps=maps)
    size = out.stat().st_size + (out.with_suffix(".bin").stat().st_size if wanted == "openvino" else 0)
    count = len(predictor.taxonomy.names)
    print(f"{out}: {wanted}, {predictor.card.arithmetic}, {count} labels, {size / 1e6:.1f} MB")
