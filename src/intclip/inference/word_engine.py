"""Inference on posts with text: frozen photo features from an engine, text and heads in torch."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from intclip.inference.engines import Arrays, Engine, Precision, TorchEngine
from intclip.inference.graph import FeatureGraph, probabilities_of
from intclip.inference.text_engine import use_engine
from intclip.methods.base import Method


class WordEngine:
    """Computes posts with text; a converted graph has only pixels as input.

    Args:
        method: A method that uses text.
        exclusive: Whether exactly one label applies.
        device: As for `TorchEngine`.
        precision: As for `TorchEngine`.
        threads: As for `TorchEngine`.
        lock: As for `TorchEngine`.
    """

    def __init__(
        self,
        method: Method,
        *,
        exclusive: bool,
        device: str,
        precision: Precision,
        threads: int | None,
        lock: threading.Lock,
    ) -> None:
        self._method, self._exclusive, self._lock = method.eval(), exclusive, lock
        self._features: Engine | None = None
        use_engine(method.text_backbone.text)
        if method.needs:
            graph = FeatureGraph(method.backbone, method.needs)
            self._features = TorchEngine(graph, device=device, precision=precision, threads=threads, lock=lock)
            method.to(next(method.backbone.parameters()).device)

    def __call__(self, pixels: npt.NDArray[np.float32] | None, texts: Sequence[str | None]) -> Arrays:
        """Compute "probabilities", "logits" (B, K) and those of single channels.

        Args:
            pixels: (B, 3, S, S); None if no post has a photo.
            texts: B texts.
        """
        device = next(self._method.backbone.parameters()).device
        arrays = {} if pixels is None or self._features is None else self._features(pixels)
        with self._lock, torch.no_grad():
            features = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            features |= {name: rows.to(device) for name, rows in self._method.read_texts(texts).items()}
            named = probabilities_of(self._method, self._method(features), exclusive=self._exclusive)
        return {name: values.float().cpu().numpy() for name, values in named.items()}
