"""One interface for torch, OpenVINO and ONNX Runtime: an array in, named arrays out.

Prediction, serving, batch jobs and the feature cache all use `Engine`. Each library is
imported only when one of its engines is created, so a command with a cached graph never imports torch.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import numpy as np
import numpy.typing as npt

from intclip.errors import IntclipError
from intclip.extras import require

if TYPE_CHECKING:
    import torch

EngineName = Literal["torch", "openvino", "onnx"]
Precision = Literal["f32", "bf16", "f16"]
"""Precision of the engine. f32 is exact. int8 is a different graph, see `quantization`."""
Arrays = dict[str, npt.NDArray[Any]]

CHUNK = 2
"""Photos per request of a stream: eight exceed the core's cache and take a tenth longer each. Four cost the
same as two but leave streams idle for longer at the end of a batch."""
AHEAD = 4
"""Requests per stream: queued ones start without Python, whose lock other threads may hold."""

_EXTRAS: dict[EngineName, tuple[str, str]] = {"openvino": ("openvino", "openvino"), "onnx": ("onnxruntime", "onnx")}


class Engine(Protocol):
    """A compiled model.

    Attributes:
        name: The library.
        outputs: Names of the outputs.
    """

    name: EngineName
    outputs: tuple[str, ...]

    def __call__(self, batch: npt.NDArray[Any]) -> Arrays:
        """Compute the outputs of a batch (B, …), B at least 1. The caller owns the arrays; thread-safe."""
        ...


def choose_engine(engine: str = "auto", device: str = "auto") -> EngineName:
    """Resolve "auto": torch on a GPU; on a CPU OpenVINO if installed, else torch.

    Raises:
        IntclipError: The engine is unknown, or does not support this device.
        MissingExtraError: The requested engine is not installed.
    """
    if engine == "auto":
        on_cpu = device == "cpu" or (device == "auto" and not accelerator())
        return "openvino" if on_cpu and find_spec("openvino") else "torch"
    if engine not in get_args(EngineName):
        raise IntclipError(f"unknown engine {engine!r}; choose auto, {', '.join(get_args(EngineName))}")
    name = cast(EngineName, engine)
    if name != "torch":
        if device not in ("auto", "cpu"):
            raise IntclipError(f"engine {name} supports only the CPU here, not {device!r}; use engine='torch'")
        module, extra = _EXTRAS[name]
        if find_spec(module) is None:
            require(module, extra)
    return name


def accelerator() -> str | None:
    """Return torch's preferred device ("cuda", "mps"); torch is imported only if a driver is present."""
    has_driver = any(Path(node).exists() for node in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))
    if not has_driver and sys.platform == "linux":
        return None
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None


def compile_module(
    module: "torch.nn.Module",
    example: npt.NDArray[Any],
    *,
    engine: str = "auto",
    precision: Precision = "f32",
    device: str = "auto",
    threads: int | None = None,
) -> Engine:
    """Compile any torch module that maps one batched tensor to a tensor or to named tensors.

    Args:
        module: Module in evaluation mode; a bare tensor becomes the output "output".
        example: A batch (B, …) of the right shape and type; B is dynamic.
        engine: "auto", "torch", "openvino" or "onnx".
        precision: See `Precision`.
        device: For torch: "auto", "cpu", "cuda", "cuda:1", "mps".
        threads: Compute threads; default: all cores.

    Raises:
        IntclipError: The engine or the precision is not supported here.
    """
    name = choose_engine(engine, device)
    if name == "torch":
        return TorchEngine(module, device=device, precision=precision, threads=threads, outputs=None)
    from intclip.inference.conversion import to_onnx, to_openvino

    if name == "openvino":
        return OpenvinoEngine(to_openvino(module, example), precision=precision, threads=threads)
    return OnnxEngine(to_onnx(module, example).SerializeToString(), precision=precision, threads=threads)


class TorchEngine:
    """A torch module without gradients.

    Args:
        module: Switched to evaluation and moved to the device.
        device: See `compile_module`.
        precision: See `Precision`.
        threads: See `compile_module`.
        outputs: Outputs to return; default: all.
        lock: Held while computing; shared by everything that uses the same layers.
    """

    name: EngineName = "torch"

    def __init__(
        self,
        module: "torch.nn.Module",
        *,
        device: str = "auto",
        precision: Precision = "f32",
        threads: int | None = None,
        outputs: Sequence[str] | None = None,
        lock: "threading.Lock | None" = None,
    ) -> None:
        import torch

        prepare_forks()
        self._torch = torch
        self._threads = threads
        try:
            self._device = torch.device((accelerator() or "cpu") if device == "auto" else device)
            self._module = module.eval().to(self._device)
        except (RuntimeError, AssertionError) as error:
            raise IntclipError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}; try 'cpu'") from error
        self._dtype = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[precision]
        if precision == "f16" and self._device.type == "cpu":
            raise IntclipError("f16 is for GPUs; on a CPU use f32 or bf16")
        self.outputs = () if outputs is None else tuple(outputs)
        self._lock = lock or threading.Lock()

    def __call__(self, batch: npt.NDArray[Any]) -> Arrays:
        """See `Engine`."""
        torch = self._torch
        tensor = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
        if tensor.dim() == 4:
            tensor = tensor.to(memory_format=torch.channels_last)
        cast = torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)
        # Not inference mode: text features cached there could not be used in the gradients of evidence.
        with self._lock, self._own_thread_count(), torch.no_grad(), cast:
            out = self._module(tensor)
        named = out if isinstance(out, dict) else {"output": out}
        self.outputs = self.outputs or tuple(named)
        return {name: named[name].float().cpu().contiguous().numpy() for name in self.outputs}

    @contextmanager
    def _own_thread_count(self) -> Iterator[None]:
        """Set torch's thread count temporarily, since it is global to the process."""
        if self._threads is None or _forked:
            yield
            return
        before = self._torch.get_num_threads()
        self._torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            self._torch.set_num_threads(before)


_forked = False
"""Whether this process is a fork of one that computed in torch."""


@cache
def prepare_forks() -> None:
    """Let forks of this process compute in torch with one thread, as torch's data loaders do.

    A fork has none of OpenMP's threads, for which torch would otherwise wait forever.
    """
    import torch

    def in_child() -> None:
        global _forked
        _forked = True
        torch.set_num_threads(1)

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=in_child)


class OpenvinoEngine:
    """An OpenVINO model on the CPU.

    It is compiled twice, each on first use: for one photo, all threads work on that photo; for more,
    every stream has its own photos, which avoids synchronisation between threads (a fifth of the time on two cores,
    more on a busy machine). Batches of several callers overlap: a stream that is done with one continues with the next.

    Args:
        model: `openvino.Model`, or the path of its .xml file.
        outputs: Outputs to compute; the rest of the graph is removed. Default: all.
        precision: f32 sets `INFERENCE_PRECISION_HINT=f32`; otherwise OpenVINO may choose bf16.
        threads: Compute threads.

    Raises:
        IntclipError: The model cannot be read, or the CPU does not support this precision.
    """

    name: EngineName = "openvino"

    def __init__(
        self,
        model: Any,
        *,
        outputs: Sequence[str] | None = None,
        precision: Precision = "f32",
        threads: int | None = None,
    ) -> None:
        openvino = require("openvino")
        self._core = openvino.Core()
        self._config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            # An explicit number suggests several processes; pinning would put all their threads on the first cores.
            self._config |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        _check_capability(self._core, precision)
        try:
            if isinstance(model, str | os.PathLike):
                model = self._core.read_model(os.fspath(model))
        except RuntimeError as error:
            raise IntclipError(f"OpenVINO cannot read this model: {_last_line(error)}") from error
        self._model = model if outputs is None else prune(model, outputs)
        self.outputs = tuple(port.get_any_name() for port in self._model.outputs)
        self._request: Any = None
        self._idle: SimpleQueue[Any] = SimpleQueue()
        self._streams = 0
        self._lock = threading.Lock()

    def __call__(self, batch: npt.NDArray[Any]) -> Arrays:
        """See `Engine`."""
        batch = np.ascontiguousarray(batch)
        values = self._one(batch) if len(batch) == 1 else self._many(batch)
        return dict(zip(self.outputs, values, strict=True))

    def _one(self, batch: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        with self._lock:
            if self._request is None:
                self._request = self._compile("LATENCY").create_infer_request()
            # The input is only read during the call, so OpenVINO may use the caller's memory; outputs are copied.
            results = self._request.infer([batch], share_inputs=True, share_outputs=False)
        return [results[position] for position in range(len(self.outputs))]

    def _many(self, batch: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        with self._lock:
            if not self._streams:
                self._open_streams()
        size = min(CHUNK, -(-len(batch) // self._streams))
        chunks = (batch[start : start + size] for start in range(0, len(batch), size))
        parts: list[list[npt.NDArray[Any]]] = []
        computing: deque[Any] = deque()
        try:
            for chunk in chunks:
                while (request := self._idle_request(block=not computing)) is None:
                    parts.append(self._collect(computing))
                computing.append(request)
                request.start_async([chunk], share_inputs=True)
            while computing:
                parts.append(self._collect(computing))
        finally:  # also after an error or Ctrl-C: the photos' memory must outlive the requests that read it
            while computing:
                with suppress(RuntimeError):
                    computing[0].wait()
                self._idle.put(computing.popleft())
        return [np.concatenate([part[position] for part in parts]) for position in range(len(self.outputs))]

    def _open_streams(self) -> None:
        compiled = self._compile("THROUGHPUT")
        streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        for _ in range(AHEAD * streams):
            self._idle.put(compiled.create_infer_request())
        self._streams = streams

    def _idle_request(self, *, block: bool) -> Any:
        """Return an idle request; None if there is none and the caller does not wait."""
        try:
            return self._idle.get(block)
        except Empty:
            return None

    def _collect(self, computing: deque[Any]) -> list[npt.NDArray[Any]]:
        """Return the outputs of the oldest request, which becomes idle."""
        computing[0].wait()
        part = [computing[0].get_output_tensor(k).data.copy() for k in range(len(self.outputs))]
        self._idle.put(computing.popleft())
        return part

    def _compile(self, hint: str) -> Any:
        try:
            return self._core.compile_model(self._model, "CPU", {**self._config, "PERFORMANCE_HINT": hint})
        except RuntimeError as error:
            raise IntclipError(f"OpenVINO cannot compile this model: {_last_line(error)}") from error


class OnnxEngine:
    """An ONNX model in ONNX Runtime on the CPU.

    Args:
        model: Serialized model, or the path of its file.
        outputs: Outputs to return; default: all.
        precision: f32 only.
        threads: Compute threads.
    """

    name: EngineName = "onnx"

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        *,
        outputs: Sequence[str] | None = None,
        precision: Precision = "f32",
        threads: int | None = None,
    ) -> None:
        runtime = require("onnxruntime", "onnx")
        if precision != "f32":
            raise IntclipError(f"engine onnx computes in f32, not in {precision}; use engine='openvino' or 'torch'")
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            source = model if isinstance(model, bytes) else os.fspath(model)
            self._session = runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has its own exception classes
            raise IntclipError(f"ONNX Runtime cannot load this model: {_last_line(error)}") from error
        self._input = self._session.get_inputs()[0].name
        self.outputs = tuple(outputs or (port.name for port in self._session.get_outputs()))

    def __call__(self, batch: npt.NDArray[Any]) -> Arrays:
        """See `Engine`."""
        values = self._session.run(list(self.outputs), {self._input: np.ascontiguousarray(batch)})
        return dict(zip(self.outputs, values, strict=True))


def prune(model: Any, outputs: Sequence[str]) -> Any:
    """Return the part of an OpenVINO model that these outputs need."""
    openvino = require("openvino")
    results = [model.output(name) for name in outputs]
    pruned = openvino.Model([port.get_node() for port in results], model.get_parameters(), model.get_friendly_name())
    for name in model.get_rt_info():
        pruned.set_rt_info(model.get_rt_info(name), name)
    return pruned


def _check_capability(core: Any, precision: Precision) -> None:
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision != "f32" and {"bf16": "BF16", "f16": "FP16"}[precision] not in able:
        raise IntclipError(f"this CPU does not support {precision}; use f32, or an int8 export for speed")


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
