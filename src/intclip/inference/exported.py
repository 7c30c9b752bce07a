"""Graphs on disk: ONNX and OpenVINO files that carry their labels, preprocessing and thresholds inside.

An exported file is complete: `open_graph` needs nothing else, and neither does a program without intclip
(`examples/predict_onnx.py`). The cache of compiled models holds the same files.
"""

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from intclip.errors import BundleError, IntclipError, StorageError
from intclip.extras import require
from intclip.files import atomic_path
from intclip.inference.card import MAP_PREFIX, METADATA_KEY, ModelCard
from intclip.inference.engines import Engine, OnnxEngine, OpenvinoEngine, Precision, prune

GraphFormat = Literal["onnx", "openvino"]
SUFFIXES: dict[str, GraphFormat] = {".onnx": "onnx", ".xml": "openvino"}
PREDICTION_OUTPUTS = ("probabilities", "logits")


@dataclass(frozen=True)
class Graph:
    """A converted model with its card.

    Attributes:
        format: Which library it is for.
        model: `openvino.Model`, or a serialized ONNX model.
        card: Labels, preprocessing, thresholds.
    """

    format: GraphFormat
    model: Any
    card: ModelCard

    def engine(self, outputs: tuple[str, ...], *, precision: Precision = "f32", threads: int | None = None) -> Engine:
        """An engine that computes these outputs."""
        maker = OpenvinoEngine if self.format == "openvino" else OnnxEngine
        return maker(self.model, outputs=outputs, precision=precision, threads=threads)

    @property
    def has_maps(self) -> bool:
        """Whether the evidence maps are among the outputs."""
        if self.format == "openvino":
            names = [port.get_any_name() for port in self.model.outputs]
        else:
            names = [port.name for port in require("onnx", "onnx").load_from_string(self.model).graph.output]
        return any(name.startswith(MAP_PREFIX) for name in names)

    def save(self, path: str | os.PathLike[str], *, maps: bool) -> Path:
        """Write the file(s), whole or not at all: `path` itself, and for OpenVINO the .bin of the same name.

        Args:
            path: Ends in .onnx or .xml.
            maps: Keep the evidence maps among the outputs.

        Raises:
            IntclipError: The suffix does not fit the format.
            StorageError: It cannot be written.
        """
        path = check_suffix(path, self.format)
        if self.format == "onnx":
            _save_onnx(self.model, self.card, path)
        else:
            model = self.model if maps else prune(self.model, PREDICTION_OUTPUTS)
            _save_openvino(model, self.card, path)
        return path


def check_format(format: str) -> GraphFormat:
    """The format by its name.

    Raises:
        IntclipError: There is no such format.
    """
    if format not in get_args(GraphFormat):
        raise IntclipError(f"unknown export format {format!r}; choose {' or '.join(get_args(GraphFormat))}")
    return cast(GraphFormat, format)


def check_suffix(path: str | os.PathLike[str], format: GraphFormat) -> Path:
    """The path, if its suffix fits.

    Raises:
        IntclipError: It does not.
    """
    path = Path(path)
    if SUFFIXES.get(path.suffix) != format:
        suffix = next(suffix for suffix, name in SUFFIXES.items() if name == format)
        raise IntclipError(f"{path}: a file in {format} format is named *{suffix}; rename it, or choose another format")
    return path


def open_graph(path: str | os.PathLike[str]) -> Graph:
    """Read an exported file.

    Raises:
        BundleError: It is missing or damaged, or intclip did not export it.
        MissingExtraError: The library for its format is not installed.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise BundleError(f"{path} is not an exported model; expected a file named *.onnx or *.xml")
    if not path.is_file():
        raise BundleError(f"no such exported model: {path}; check the path")
    return _open_onnx(path) if path.suffix == ".onnx" else _open_openvino(path)


def _open_openvino(path: Path) -> Graph:
    openvino = require("openvino")
    if not path.with_suffix(".bin").is_file():
        raise BundleError(f"{path} has lost its weights; put {path.with_suffix('.bin').name} beside it")
    try:
        model = openvino.Core().read_model(os.fspath(path))
        text = model.get_rt_info(METADATA_KEY).astype(str) if model.has_rt_info(METADATA_KEY) else None
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable OpenVINO model; export it again") from error
    if text is None:
        raise BundleError(f"{path} holds no labels: intclip did not export it; make one with: intclip export MODEL")
    return Graph("openvino", model, ModelCard.from_json(text, str(path)))


def _open_onnx(path: Path) -> Graph:
    onnx = require("onnx", "onnx")
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's own error class has moved between its versions
        raise BundleError(f"{path} is not a readable ONNX model; export it again") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in metadata:
        raise BundleError(f"{path} holds no labels: intclip did not export it; make one with: intclip export MODEL")
    return Graph("onnx", content, ModelCard.from_json(metadata[METADATA_KEY], str(path)))


def _save_onnx(content: bytes, card: ModelCard, path: Path) -> None:
    onnx = require("onnx", "onnx")
    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    with atomic_path(path) as partial:
        partial.write_bytes(model.SerializeToString())


def _save_openvino(model: Any, card: ModelCard, path: Path) -> None:
    openvino = require("openvino")
    model.set_rt_info(card.to_json(), METADATA_KEY)
    if path.is_dir():  # told before the weights are in their place
        raise StorageError(f"cannot write {path}: it is a folder; choose another name")
    # The weights are renamed first: whoever sees the .xml finds its .bin.
    with (
        atomic_path(path) as partial,
        tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder,
        atomic_path(path.with_suffix(".bin")) as weights,
    ):
        saved = Path(folder, path.name)
        try:
            openvino.save_model(model, os.fspath(saved), compress_to_fp16=False)
        except RuntimeError as error:  # so OpenVINO tells a full disk, too
            reason = str(error).splitlines()[-1]
            raise StorageError(f"cannot write {path} ({reason}); free space or choose a writable place") from error
        saved.with_suffix(".bin").replace(weights)
        saved.replace(partial)
