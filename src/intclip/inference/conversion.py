"""From a torch module to an OpenVINO or ONNX graph, with a free batch size and named outputs."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.errors import IntclipError
from intclip.extras import require

INPUT = "pixels"
TOLERANCE = 1e-3
"""Largest difference between a converted graph and torch in the check of `_check`, as a share of the output's largest
value and at least absolute. float32 rounding stays a hundred times below; what a trace froze is far above."""
_Run = Callable[[npt.NDArray[Any]], Sequence[npt.NDArray[Any]]]


class _Positional(nn.Module):
    """The module with its outputs as a tuple: tracing and export know no dictionaries."""

    def __init__(self, module: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, batch: Tensor) -> tuple[Tensor, ...]:
        out = self.module(batch)
        return (out,) if isinstance(out, Tensor) else tuple(out[name] for name in self.names)


def to_openvino(module: nn.Module, example: npt.NDArray[Any]) -> Any:
    """`openvino.Model` of a module.

    Args:
        module: Maps one batched tensor to a tensor or to named tensors; in evaluation mode.
        example: A batch (B, …), B at least 2 so that no size is mistaken for a constant 1.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        IntclipError: The module cannot be converted, or the graph gives other numbers than the module on another batch.
    """
    openvino = require("openvino")
    positional, names, batch = _prepare(module, example)
    with _quiet(), torch.no_grad():
        # Traced, not exported: torch.export takes several times as long and loses the dynamic shape in this converter.
        trace: Callable[..., Any] = torch.jit.trace
        traced = trace(positional, batch, check_trace=False)
        shape = openvino.PartialShape([-1, *batch.shape[1:]])
        try:
            model = openvino.convert_model(traced, example_input=batch, input=[shape])
        except RuntimeError as error:
            raise IntclipError(f"OpenVINO cannot convert this model ({_reason(error)}); use engine='torch'") from error
    model.inputs[0].get_tensor().set_names({INPUT})
    for port, name in zip(model.outputs, names, strict=True):
        port.get_tensor().set_names({name})

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(other: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        results = compiled(other)
        return [results[position] for position in range(len(names))]

    _check(positional, names, batch, run, "OpenVINO")
    return model


def to_onnx(module: nn.Module, example: npt.NDArray[Any]) -> Any:
    """`onnx.ModelProto` of a module; arguments as for `to_openvino`.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        IntclipError: As for `to_openvino`.
    """
    for name in ("onnx", "onnxscript"):
        require(name, "onnx")
    runtime = require("onnxruntime", "onnx")
    positional, names, batch = _prepare(module, example)
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                positional,
                (batch,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
                input_names=[INPUT],
                output_names=list(names),
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

    def run(other: npt.NDArray[Any]) -> Sequence[npt.NDArray[Any]]:
        found: Sequence[npt.NDArray[Any]] = session.run(list(names), {INPUT: other})
        return found

    _check(positional, names, batch, run, "ONNX")
    return model


def _check(module: _Positional, names: Sequence[str], example: Tensor, run: _Run, format: str) -> None:
    """Compare a converted graph with torch on photos that it was not made from, one more than in the example.

    A trace keeps as constants whatever Python read from the example: its batch size, the order of its rows, a branch
    that was taken. Such a graph is right for the example alone.

    Raises:
        IntclipError: An output differs, or the graph does not take the batch.
    """
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(example.shape[0] + 1, *example.shape[1:], generator=generator).to(example.dtype)
    noise[::2] += 1  # bright and dark photos in turn
    noise[1::2] -= 1
    graph = f"the {format} graph of this model"
    advice = "use engine='torch'"
    for batch in (noise, -noise):  # two, so that a branch on their values falls on either side
        with torch.no_grad():
            expected = [value.float().numpy() for value in module(batch)]
        try:
            found = run(batch.numpy())
        except Exception as error:  # each library raises its own kinds
            raise IntclipError(f"{graph} works for one batch size only ({_reason(error)}); {advice}") from error
        for name, value, wanted in zip(names, found, expected, strict=True):
            if value.shape != wanted.shape:
                raise IntclipError(f"{graph} gives {name!r} of shape {value.shape} for {wanted.shape}; {advice}")
            worst = float(np.abs(value - wanted).max(initial=0))
            if not worst <= TOLERANCE * max(1.0, float(np.abs(wanted).max(initial=0))):  # NaN fails, too
                raise IntclipError(f"{graph} differs from torch by {worst:.2g} in {name!r}; {advice}")


def _prepare(module: nn.Module, example: npt.NDArray[Any]) -> tuple[_Positional, tuple[str, ...], Tensor]:
    """The module as a tuple-returning one, its output names, and the example batch; runs it once.

    That run also fills what a method keeps in evaluation (the text features), which then becomes a constant.
    """
    batch = torch.from_numpy(np.ascontiguousarray(example))
    if batch.shape[0] < 2:
        batch = batch.expand(2, *batch.shape[1:]).contiguous()
    module.eval()
    with torch.no_grad():
        out = module(batch)
    names = ("output",) if isinstance(out, Tensor) else tuple(out)
    return _Positional(module, names).eval(), names, batch


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' warnings and dumps of graphs (tracing of Python numbers, no torchvision) off the screen."""
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
    """The first line of an error that says something, without colours."""
    lines = re.sub("\x1b\\[[0-9;]*m", "", str(error)).splitlines()
    return next((line.strip() for line in lines if line.strip()), type(error).__name__)
