"""Text towers in OpenVINO: up to three times as fast as torch with AVX-512, with the same outputs."""

import threading
from typing import Any

import torch
from torch import Tensor

from intclip.backbones.base import TextTower
from intclip.extras import require
from intclip.inference.conversion import to_openvino

PAYS_FROM = 64
"""Number of texts after which a tower is converted: the conversion takes about as long."""
_EXAMPLES = (("a photo", "why people share photos of the sea"), ("sea", "a", "friends at a table in the evening"))


class TextEngine:
    """A text tower's `forward`, converted to OpenVINO once there are many texts.

    Args:
        tower: In evaluation mode.
    """

    def __init__(self, tower: TextTower) -> None:
        self._tower = tower
        self._seen = 0
        self._compiled: Any = None
        self._lock = threading.Lock()

    def __call__(self, tokens: Tensor) -> Tensor:
        """Compute text features (T, D), unnormalised, of tokens (T, L).

        Raises:
            IntclipError: The tower cannot be converted.
        """
        with self._lock:
            if self._compiled is None and self._seen < PAYS_FROM:
                self._seen += len(tokens)
                features: Tensor = self._tower(tokens)
                return features
            if self._compiled is None:
                self._compiled = self._compile()
            return torch.from_numpy(self._compiled(tokens.numpy())[0].copy())

    def _compile(self) -> Any:
        example, other = (self._tower.tokenize(texts).numpy() for texts in _EXAMPLES)
        model = to_openvino(self._tower, example, others=[other])
        config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        return require("openvino").Core().compile_model(model, "CPU", config)


def use_engine(tower: TextTower) -> None:
    """Make a tower's `embed_texts` use OpenVINO for many texts."""
    if tower.engine is None:
        tower.engine = TextEngine(tower)
