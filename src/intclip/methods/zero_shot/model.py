"""Zero-shot multi-label classification from the labels' sentences, directly or through everyday scenes.

From sentences: the cosine of photo and sentence, on a scale fitted without labels (`sentence_scoring.py`). Through
scenes: `scene_scoring.py`, used by `intclip.load("lite")`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.backbones.unknown_words import OTHER_LANGUAGE, check_known
from intclip.labels.taxonomy import Taxonomy
from intclip.labels.templates import AUTO, TEMPLATES, class_texts
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Method, Output, WordUnit
from intclip.methods.region_maps import region_map
from intclip.methods.sentence_scoring import (
    ScoringOptions,
    SentenceScoring,
    encode_texts,
)
from intclip.methods.zero_shot.scene_scoring import SceneScoring


class ZeroShotOptions(ScoringOptions, frozen=True):
    """Options of the zero-shot classifier, including the scale.

    Attributes:
        sentence_form: Form of the class text; "fine" is the class name.
        templates: Name of a set of `TEMPLATES`, templates, or "auto": "ensemble" for names, "plain" for sentences. Text
            features are averaged over them.
        scenes: Score labels through everyday scenes; for embedded backbones.
    """

    sentence_form: str = "11-15"
    templates: str | tuple[str, ...] = AUTO
    scenes: bool = False

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, str):
            if templates not in (AUTO, *TEMPLATES):
                raise ValueError(f"unknown template set {templates!r}; known: {', '.join([AUTO, *TEMPLATES])}")
        elif not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("each template must hold {} once, and there must be one")
        return templates


class ZeroShot(Method):
    """Zero-shot classifier without training; text features are computed at construction.

    Attributes:
        text: Directions (K, D) of the labels' sentences.
    """

    Options = ZeroShotOptions
    options: ZeroShotOptions
    needs = ("pooled", "regions")
    text: Tensor
    center: Tensor
    gain: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: ZeroShotOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        check_known(backbone, taxonomy.sentences(options.sentence_form), OTHER_LANGUAGE)
        text = encode_texts(backbone, class_texts(taxonomy, options.sentence_form, options.templates))
        direction, center, gain = SentenceScoring(backbone, options).scales(text)
        # Not stored: derived from the backbone, the sentences and the options, which are in the bundle.
        self.register_buffer("text", direction, persistent=False)
        self.register_buffer("center", center, persistent=False)
        self.register_buffer("gain", gain, persistent=False)
        self.scenes = SceneScoring(backbone, taxonomy, text) if options.scenes else None

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "sight" maps are the logits of single regions."""
        output = Output(self._logits(features["pooled"]))
        if maps and "regions" in features:
            output.maps["sight"] = region_map(self._logits, features["regions"])
        return output

    @property
    def word_unit(self) -> WordUnit | None:
        """Return "cosine": probabilities are only defined for photos."""
        return "cosine"

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return cosines (T, K) of texts and the labels' sentences."""
        found = self.backbone.embed_texts(texts, long="average") @ self.text.T
        return found.double().cpu().numpy()

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the binary cross-entropy, only for logging."""
        return {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}

    def _logits(self, embeddings: Tensor) -> Tensor:
        if self.scenes is not None:
            logits: Tensor = self.scenes(embeddings)
            return logits
        return self.gain * (F.normalize(embeddings, dim=-1) @ self.text.T - self.center)
