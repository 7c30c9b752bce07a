"""Graphs on disk: ONNX and OpenVINO files that include labels, preprocessing and thresholds.

An exported file is self-contained, for `open_graph` and for programs without intclip
(`examples/predict_onnx.py`). The cache of converted models uses the same files.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from intclip.errors import BundleError, IntclipError, StorageError
from intclip.extras import require
from intclip.files import atomic_path
from intclip.inference.card import ATTENTION_OUTPUT, EMBEDDING, MAP_PREFIX, METADATA_KEY, ModelCard
from intclip.inference.engines import Engine, OnnxEngine, OpenvinoEngine, Precision, prune

GraphFormat = Literal["onnx", "openvino"]
SUFFIXES: dict[str, GraphFormat] = {".onnx": "onnx", ".xml": "openvino"}
PREDICTION_OUTPUTS = ("probabilities", "logits")


@dataclass(frozen=True)
class Graph:
    """A converted model with its card.

    Attributes:
        format: Target library.
        model: `openvino.Model`, or a serialized ONNX model.
        card: Labels, preprocessing, thresholds.
    """

    format: GraphFormat
    model: Any
    card: ModelCard

    def engine(self, outputs: tuple[str, ...], *, precision: Precision = "f32", threads: int | None = None) -> Engine:
        """Create an engine that computes these outputs."""
        maker = OpenvinoEngine if self.format == "openvino" else OnnxEngine
        return maker(self.model, outputs=outputs, precision=precision, threads=threads)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        if self.format == "openvino":
            return tuple(port.get_any_name() for port in self.model.outputs)
        return tuple(port.name for port in require("onnx", "onnx").load_from_string(self.model).graph.output)

    @property
    def has_maps(self) -> bool:
        """Whether the outputs include evidence maps."""
        return any(name.startswith(MAP_PREFIX) for name in self.outputs)

    def export(self, path: str | os.PathLike[str], *, maps: bool) -> Path:
        """Save only the outputs of an exported file: predictions, and with `maps` the evidence maps."""
        evidence = (MAP_PREFIX, ATTENTION_OUTPUT)
        kept = [name for name in self.outputs if name != EMBEDDING and (maps or not name.startswith(evidence))]
        cut = prune if self.format == "openvino" else _prune_onnx
        return Graph(self.format, cut(self.model, kept), self.card).save(path)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the file(s) atomically: `path`, and for OpenVINO the .bin of the same name.

        Args:
            path: Ends in .onnx or .xml.

        Raises:
            IntclipError: The suffix does not fit the format.
            StorageError: It cannot be written.
        """
        path = check_suffix(path, self.format)
        save = _save_onnx if self.format == "onnx" else _save_openvino
        save(self.model, self.card.to_json(), path)
        return path


@dataclass(frozen=True)
class Tower:
    """A converted image tower, from pixels to a backbone's frozen features, shared by all models on it.

    Attributes:
        format: Target library.
        model: `openvino.Model`, or a serialized ONNX model, from "pixels" to features by their names.
    """

    format: GraphFormat
    model: Any

    def save(self, path: Path) -> None:
        """Write the file(s) like `Graph.save`."""
        (_save_onnx if self.format == "onnx" else _save_openvino)(self.model, None, path)

    def join(self, head: Graph) -> Graph:
        """Join tower and head to one graph from pixels to outputs."""
        join = _join_openvino if self.format == "openvino" else _join_onnx
        return Graph(self.format, join(self.model, head.model), head.card)


def check_format(format: str) -> GraphFormat:
    """Validate a format's name.

    Raises:
        IntclipError: The format is unknown.
    """
    if format not in get_args(GraphFormat):
        raise IntclipError(f"unknown export format {format!r}; choose {' or '.join(get_args(GraphFormat))}")
    return cast(GraphFormat, format)


def check_suffix(path: str | os.PathLike[str], format: GraphFormat) -> Path:
    """Check that a path's suffix fits the format.

    Raises:
        IntclipError: It does not.
    """
    path = Path(path)
    if SUFFIXES.get(path.suffix) != format:
        suffix = next(suffix for suffix, name in SUFFIXES.items() if name == format)
        raise IntclipError(f"{path}: {format} files are named *{suffix}; rename it, or choose another format")
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
    model, text = _read_onnx(path) if path.suffix == ".onnx" else _read_openvino(path)
    if text is None:
        raise BundleError(f"{path} has no labels: not exported by intclip; create one with: intclip export MODEL")
    return Graph(SUFFIXES[path.suffix], model, ModelCard.from_json(text, str(path)))


def open_tower(path: Path) -> Tower:
    """Read a file of `Tower.save`; raises as `open_graph`."""
    model, _ = _read_onnx(path) if path.suffix == ".onnx" else _read_openvino(path)
    return Tower(SUFFIXES[path.suffix], model)


def _read_openvino(path: Path) -> tuple[Any, str | None]:
    """Read the model and its card's text."""
    openvino = require("openvino")
    if not path.with_suffix(".bin").is_file():
        raise BundleError(f"{path} has no weights; put {path.with_suffix('.bin').name} next to it")
    try:
        model = openvino.Core().read_model(os.fspath(path))
        text = model.get_rt_info(METADATA_KEY).astype(str) if model.has_rt_info(METADATA_KEY) else None
    except RuntimeError as error:
        raise BundleError(f"{path} is not a readable OpenVINO model; export it again") from error
    return model, text


def _read_onnx(path: Path) -> tuple[bytes, str | None]:
    """Read the serialized model and its card's text."""
    onnx = require("onnx", "onnx")
    content = path.read_bytes()
    try:
        model = onnx.load_from_string(content)
    except Exception as error:  # protobuf's error class depends on its version
        raise BundleError(f"{path} is not a readable ONNX model; export it again") from error
    return content, {entry.key: entry.value for entry in model.metadata_props}.get(METADATA_KEY)


def _join_openvino(tower: Any, head: Any) -> Any:
    openvino = require("openvino")
    tower, head = tower.clone(), head.clone()  # do not modify the originals
    for op in head.get_ops():
        op.set_friendly_name(f"head/{op.get_friendly_name()}")  # names must be unique, also among the tower's
    for port in head.inputs:
        port.get_node().output(0).replace(tower.output(port.get_any_name()).get_node().input_value(0))
    return openvino.Model(head.get_results(), tower.get_parameters(), "intclip")


def _join_onnx(tower: bytes, head: bytes) -> bytes:
    onnx = require("onnx", "onnx")
    first, second = onnx.load_from_string(tower), onnx.load_from_string(head)
    inputs = [port.name for port in second.graph.input]
    second = onnx.compose.add_prefix(second, "head/", rename_outputs=False)
    joined = onnx.compose.merge_models(first, second, io_map=[(name, f"head/{name}") for name in inputs])
    return _prune_onnx(joined.SerializeToString(), [port.name for port in second.graph.output])


def _prune_onnx(content: bytes, outputs: Sequence[str]) -> bytes:
    """Return the part of an ONNX model that these outputs need."""
    onnx = require("onnx", "onnx")
    model = onnx.load_from_string(content)
    extractor = onnx.utils.Extractor(model)
    pruned = extractor.extract_model([port.name for port in model.graph.input], list(outputs))
    serialized: bytes = pruned.SerializeToString()
    return serialized


def _save_onnx(content: bytes, card: str | None, path: Path) -> None:
    if card is not None:
        onnx = require("onnx", "onnx")
        model = onnx.load_from_string(content)
        onnx.helper.set_model_props(model, {METADATA_KEY: card})
        content = model.SerializeToString()
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def _save_openvino(model: Any, card: str | None, path: Path) -> None:
    openvino = require("openvino")
    if card is not None:
        model.set_rt_info(card, METADATA_KEY)
    if path.is_dir():  # checked before the weights are renamed
        raise StorageError(f"cannot write {path}: it is a folder; choose another name")
    # The weights are renamed first, so that an existing .xml always has its .bin.
    with (
        atomic_path(path) as partial,
        tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as folder,
        atomic_path(path.with_suffix(".bin")) as weights,
    ):
        saved = Path(folder, path.name)
        try:
            openvino.save_model(model, os.fspath(saved), compress_to_fp16=False)
        except RuntimeError as error:  # OpenVINO's error for a full disk
            reason = str(error).splitlines()[-1]
            raise StorageError(f"cannot write {path} ({reason}); free space or choose a writable place") from error
        saved.with_suffix(".bin").replace(weights)
        saved.replace(partial)
