"""A backbone's frozen features with the fastest available engine."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.data.cache_shards import Arrays
from intclip.data.feature_cache import to_device
from intclip.inference.engines import Engine, choose_engine, compile_module
from intclip.inference.graph import FeatureGraph, example_pixels


class FrozenFeatures:
    """Computes features of pixels, without gradient; on a CPU with OpenVINO if installed, else with torch.

    The engine is compiled on the first batch, so a run with cached features never compiles one.

    Args:
        backbone: Frozen, on the device.
        names: Features; "pixels" are passed through.
        device: Device of the features.
        engine: "auto", "torch", "openvino" or "onnx".
        precision: Creates the autocast context for torch.
    """

    def __init__(
        self,
        backbone: Backbone,
        names: Sequence[FeatureName],
        *,
        device: torch.device,
        engine: str = "auto",
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._backbone = backbone
        self._names = tuple(name for name in names if name != "pixels")
        self._passes_pixels = "pixels" in names
        self._device = device
        self._engine_name = choose_engine(engine, device.type)
        self._engine: Engine | None = None
        self._precision = precision

    @property
    def arithmetic(self) -> str:
        """Precision of the computation: "fp32", "bf16" or "fp16"; each has its own cache."""
        with self._precision():
            kind = self._device.type
            if self._engine_name != "torch" or not torch.is_autocast_enabled(kind):
                return "fp32"
            return {torch.bfloat16: "bf16", torch.float16: "fp16"}[torch.get_autocast_dtype(kind)]

    def __call__(self, pixels: Tensor) -> Features:
        """Compute features (B, …) on the device, from pixels (B, 3, S, S)."""
        features: Features = {}
        if self._names and self._engine_name == "torch":
            with self._precision():
                features = self._backbone.features(to_device(pixels, self._device), self._names)
        elif self._names:
            arrays = self._compiled()(pixels.numpy())
            features = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self._passes_pixels:
            features["pixels"] = to_device(pixels, self._device)
        return features

    def arrays(self, pixels: npt.NDArray[np.float32]) -> Arrays:
        """The same for NumPy, in float32, for feature caches."""
        if len(pixels) == 1 and self._engine is None:
            # A cache determines shapes with one photo of zeros, which does not justify compiling an engine.
            features = self._backbone.features(torch.from_numpy(pixels).to(self._device), self._names)
        else:
            features = self(torch.from_numpy(pixels))
        return {name: value.float().cpu().numpy() for name, value in features.items()}

    def _compiled(self) -> Engine:
        if self._engine is None:
            graph = FeatureGraph(self._backbone, self._names)
            self._engine = compile_module(graph, example_pixels(self._backbone), engine=self._engine_name, device="cpu")
        return self._engine
