"""Convert torch modules to OpenVINO or ONNX graphs, with dynamic batch size and named outputs."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.errors import IntclipError
from intclip.extras import require

INPUT = "pixels"
TOLERANCE = 1e-3
"""Largest allowed difference between a converted graph and torch, relative to the output's largest value and
at least absolute. float32 rounding is a hundred times smaller; errors of frozen traces are far larger."""
_Run = Callable[[dict[str, npt.NDArray[Any]]], Sequence[npt.NDArray[Any]]]


Inputs = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]
"""A batch (B, …), called "pixels" in the graph, or several with the same B by name."""


class _Positional(nn.Module):
    """Wraps a module for tracing and export, which do not support dictionaries: ordered inputs, a tuple of outputs."""

    def __init__(self, module: nn.Module, inputs: tuple[str, ...] | None, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.inputs, self.outputs = module, inputs, outputs

    def forward(self, *batch: Tensor) -> tuple[Tensor, ...]:
        out = self.module(batch[0] if self.inputs is None else dict(zip(self.inputs, batch, strict=True)))
        return (out,) if isinstance(out, Tensor) else tuple(out[name] for name in self.outputs)


@dataclass(frozen=True)
class _Prepared:
    """Input of a converter.

    Attributes:
        module: Tensors in order to a tuple of tensors.
        inputs: Names of its inputs.
        batch: The example, in their order.
        others: Other batches to check the graph with.
    """

    module: _Positional
    inputs: tuple[str, ...]
    batch: tuple[Tensor, ...]
    others: list[tuple[Tensor, ...]]


def to_openvino(
    module: nn.Module, example: Inputs, *, others: Sequence[Inputs] = (), fixed: Collection[str] = ()
) -> Any:
    """Convert a module to `openvino.Model`.

    Args:
        module: Maps one batched tensor, or named ones, to a tensor or to named tensors; in evaluation mode.
        example: B at least 2 so that no size is mistaken for a constant 1. Integers are tokens, with dynamic length.
        others: Batches with another B for comparing the graph with torch; default: noise.
        fixed: Names of inputs that are weights, whose shapes are static.

    Raises:
        IntclipError: The module cannot be converted, or the graph differs from the module on another batch.
    """
    openvino = require("openvino")
    prepared = _prepare(module, example, others)
    with _quiet(), torch.no_grad():
        # Traced, not exported: torch.export takes several times as long and loses the dynamic shape in this converter.
        # As a module, whose names int8 needs to tell the towers.
        trace: Callable[..., Any] = torch.jit.trace
        traced = trace(prepared.module, prepared.batch, check_trace=False)
        shapes = [
            openvino.PartialShape(list(tensor.shape) if name in fixed else _free_shape(tensor))
            for name, tensor in zip(prepared.inputs, prepared.batch, strict=True)
        ]
        try:
            model = openvino.convert_model(traced, example_input=prepared.batch, input=shapes)
        except RuntimeError as error:
            raise IntclipError(f"OpenVINO cannot convert this model ({_reason(error)}); use engine='torch'") from error
    _fold_constants(model)
    for ports, names in ((model.inputs, prepared.inputs), (model.outputs, prepared.module.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    # Compiled like `OpenvinoEngine`, for one photo and for many, because the two can differ.
    for hint in ("LATENCY", "THROUGHPUT"):
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": hint}
        compiled = openvino.Core().compile_model(model, "CPU", config)
        _check(prepared, partial(_run_openvino, compiled, len(prepared.module.outputs)), "OpenVINO")
    return model


def _fold_constants(model: Any) -> None:
    """Compute what depends on constants alone, such as `-gamma[0]`.

    The converter leaves some of it to the compiler. With several streams OpenVINO 2026.4 computes it in each of them
    in place, over constants that they share, so that results are wrong in some compilations and right in others.
    """
    openvino = require("openvino")
    for node in model.get_ordered_ops():
        inputs = [port.get_source_output().get_node() for port in node.inputs()]
        if not inputs or node.get_type_name() == "Result" or any(op.get_type_name() != "Constant" for op in inputs):
            continue
        if node.get_type_name().startswith("Random") or any(
            port.get_partial_shape().is_dynamic for port in node.outputs()
        ):
            continue
        found = [openvino.Tensor(port.get_element_type(), port.get_shape()) for port in node.outputs()]
        if node.evaluate(found, [openvino.Tensor(op.data) for op in inputs]):
            for port, value in zip(node.outputs(), found, strict=True):
                port.replace(openvino.op.Constant(value).output(0))


def _run_openvino(compiled: Any, outputs: int, batch: dict[str, npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
    results = compiled(batch)
    return [results[position] for position in range(outputs)]


def to_onnx(module: nn.Module, example: Inputs, *, others: Sequence[Inputs] = ()) -> Any:
    """Convert a module to `onnx.ModelProto`; arguments as for `to_openvino`.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        IntclipError: As for `to_openvino`.
    """
    for name in ("onnx", "onnxscript"):
        require(name, "onnx")
    runtime = require("onnxruntime", "onnx")
    prepared = _prepare(module, example, others)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                prepared.module,
                prepared.batch,
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in prepared.batch),),
                input_names=list(prepared.inputs),
                output_names=list(prepared.module.outputs),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = _reason(error.__cause__ or error)
            raise IntclipError(f"this model cannot be converted to ONNX ({reason}); use engine='torch'") from error
    if program is None:
        raise IntclipError("torch.onnx returned no program")
    model = program.model_proto
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(batch: dict[str, npt.NDArray[Any]]) -> Sequence[npt.NDArray[Any]]:
        found: Sequence[npt.NDArray[Any]] = session.run(list(prepared.module.outputs), batch)
        return found

    _check(prepared, run, "ONNX")
    return model


def _check(prepared: _Prepared, run: _Run, format: str) -> None:
    """Compare a converted graph with torch on other batches.

    A trace freezes whatever Python reads from the example: batch size, order of rows,
    branches taken. Such a graph is only right for the example.

    Raises:
        IntclipError: An output differs, or the graph does not accept the batch.
    """
    graph = f"the {format} graph of this model"
    advice = "use engine='torch'"
    for batch in prepared.others:
        with torch.no_grad():
            expected = [value.float().numpy() for value in prepared.module(*batch)]
        named = {name: tensor.numpy() for name, tensor in zip(prepared.inputs, batch, strict=True)}
        try:
            found = run(named)
        except Exception as error:  # each library has its own exceptions
            raise IntclipError(f"{graph} works for one batch size only ({_reason(error)}); {advice}") from error
        for name, value, wanted in zip(prepared.module.outputs, found, expected, strict=True):
            if value.shape != wanted.shape:
                raise IntclipError(f"{graph} gives {name!r} of shape {value.shape} for {wanted.shape}; {advice}")
            worst = float(np.abs(value - wanted).max(initial=0))
            if not worst <= TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0))):  # also fails for NaN
                raise IntclipError(f"{graph} differs from torch by {worst:.2g} in {name!r}; {advice}")


def _prepare(module: nn.Module, example: Inputs, others: Sequence[Inputs]) -> _Prepared:
    """Wrap a module with its batches, and run it once.

    The run also fills a method's cache of text features, which become constants.
    """
    names = tuple(example) if isinstance(example, Mapping) else None

    def tensors(inputs: Inputs) -> tuple[Tensor, ...]:
        arrays = [inputs[name] for name in names or ()] if isinstance(inputs, Mapping) else [inputs]
        return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)

    batch = tensors(example)
    if batch[0].shape[0] < 2:
        batch = tuple(tensor.expand(2, *tensor.shape[1:]).contiguous() for tensor in batch)
    module.eval()
    with torch.no_grad():
        out = module(batch[0] if names is None else dict(zip(names, batch, strict=True)))
    outputs = ("output",) if isinstance(out, Tensor) else tuple(out)
    further = [tensors(other) for other in others] or _noise(batch)
    return _Prepared(_Positional(module, names, outputs).eval(), names or (INPUT,), batch, further)


def _free_shape(example: Tensor) -> list[int]:
    """Return the sizes, -1 for dynamic ones: the batch, and the length of tokens."""
    return [-1] * example.dim() if not example.is_floating_point() else [-1, *example.shape[1:]]


def _noise(example: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Return two batches, one row longer than the example, that take both sides of branches on values."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for sign in (1, -1):
        batch = []
        for tensor in example:
            noise = torch.randn(tensor.shape[0] + 1, *tensor.shape[1:], generator=generator).to(tensor.dtype)
            noise[::2] += sign  # alternating bright and dark photos
            noise[1::2] -= sign
            batch.append(noise)
        batches.append(tuple(batch))
    return batches


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the converters' warnings and graph dumps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first informative line of an error, without colours."""
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)
