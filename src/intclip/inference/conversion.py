"""From a torch module to an OpenVINO or ONNX graph, with a free batch size and named outputs."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.errors import IntclipError
from intclip.extras import require

INPUT = "pixels"


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
        IntclipError: The module cannot be converted.
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
            raise IntclipError(f"OpenVINO cannot convert this model: {str(error).splitlines()[0]}") from error
    model.inputs[0].get_tensor().set_names({INPUT})
    for port, name in zip(model.outputs, names, strict=True):
        port.get_tensor().set_names({name})
    return model


def to_onnx(module: nn.Module, example: npt.NDArray[Any]) -> Any:
    """`onnx.ModelProto` of a module; arguments as for `to_openvino`.

    Raises:
        MissingExtraError: onnx or onnxscript is not installed.
        IntclipError: The module cannot be converted.
    """
    for name in ("onnx", "onnxscript"):
        require(name, "onnx")
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
            raise IntclipError(f"this model cannot be converted to ONNX: {str(error).splitlines()[0]}") from error
    if program is None:
        raise IntclipError("torch.onnx returned no program")
    return program.model_proto


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
    """Keep the converters' warnings (tracing of Python numbers, absent torchvision) away from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
