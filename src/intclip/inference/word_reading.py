"""How a model reads words: by probabilities where it was fitted on them, by cosines where its labels are sentences."""

import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intclip.errors import IntclipError
from intclip.inference.card import ModelCard
from intclip.labels.taxonomy import Taxonomy

if TYPE_CHECKING:
    from intclip.evidence.words import Unit, WordEvidence
    from intclip.methods.base import Method


class WordReading:
    """The part of a predictor that explains words; a model of posts reads them in its own way."""

    card: ModelCard
    taxonomy: Taxonomy
    method: Callable[[], "Method"]
    _lock: threading.Lock

    @property
    def channels(self) -> tuple[str, ...]:
        """What the model tells probabilities from: photos ("image"), words ("text"), or both."""
        return ("image",)

    @property
    def alone(self) -> tuple[str, ...]:
        """Which of its channels suffice without the other."""
        return ("image",)

    @property
    def word_unit(self) -> "Unit":
        """What `word_scores` are."""
        return "cosine"

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """How much texts speak for each label (T, K): of a zero-shot model their cosines with its sentences.

        Raises:
            IntclipError: The model reads no words.
        """
        encode, labels = self._word_tower
        with self._lock:
            return np.asarray(encode(texts), dtype=np.float64) @ labels.T

    def explain_words(self, text: str, label: str, *, how: str = "occlusion") -> "WordEvidence":
        """Which words of a text carry a label.

        Args:
            text: The words of a post.
            label: Name or alias of a label.
            how: "occlusion" or "shapley"; see `intclip.evidence.words.word_evidence`.

        Raises:
            TaxonomyError: There is no such label; the nearest ones are named.
            IntclipError: The model reads no words, or there are none.
            MissingExtraError: "shapley" without captum.
        """
        from intclip.evidence.words import word_evidence

        index = self.taxonomy.index(label)
        return word_evidence(text, self.taxonomy.names[index], index, self.word_scores, self.word_unit, how)

    @cached_property
    def _word_tower(self) -> tuple[Callable[[Sequence[str]], npt.NDArray[np.float32]], npt.NDArray[np.float64]]:
        """Texts to unit vectors, and the labels' vectors (K, D)."""
        if self.card.method != "zero_shot":
            reads = "words only beside a photo" if "text" in self.channels else "photos alone"
            raise IntclipError(
                f"{self.card.model} reads {reads}; lite, zero-shot:NAME and models of `intclip fit` explain words"
            )
        from intclip.methods.zero_shot.model import ZeroShot
        from intclip.posts.encoders import tower_encoder, unit

        method = self.method()
        assert isinstance(method, ZeroShot)
        encode = tower_encoder(method.backbone)
        return lambda texts: unit(encode(texts)), method.text.cpu().double().numpy()
