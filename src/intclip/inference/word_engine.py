"""Methods that read the words beside a photo, at inference."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from intclip.inference.engines import Arrays, Precision, TorchEngine
from intclip.inference.graph import PhotoGraph
from intclip.methods.base import Method
from intclip.posts.beside import READERS


class WordEngine:
    """Photos with the words beside them, in torch: a converted graph has one input, the pixels.

    Args:
        method: One that reads words, see `intclip.methods.base.Beside`.
        exclusive: Whether exactly one label holds.
        device: As for `TorchEngine`.
        precision: As for `TorchEngine`.
        threads: As for `TorchEngine`.
    """

    def __init__(
        self, method: Method, *, exclusive: bool, device: str, precision: Precision, threads: int | None
    ) -> None:
        self._backbone = method.backbone
        self._readers = {name: READERS[name] for name in method.beside if name in READERS}
        graph = PhotoGraph(method, exclusive=exclusive, maps=False)
        self._engine = TorchEngine(graph, device=device, precision=precision, threads=threads)

    def __call__(self, pixels: npt.NDArray[np.float32], texts: Sequence[str | None]) -> Arrays:
        """Outputs "probabilities" and "logits" (B, K) of pixels (B, 3, S, S) and B texts, None where there are none."""
        found = {name: read(texts, self._backbone) for name, read in self._readers.items()}
        return self._engine(pixels, {name: rows for name, rows in found.items() if rows is not None})


def reads_words(method: Method) -> bool:
    """Whether a method reads words beside photos at inference."""
    return any(name in READERS for name in method.beside)
