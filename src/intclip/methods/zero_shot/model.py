"""Zero-shot multi-label classification: cosine similarity to each class's sentence, made a probability of its own.

A cosine is not a probability, and each sentence has cosines of its own level and spread. Two ways to put them on one
scale, neither with labels:

    moments   z = (cos(x, t) − t·μ) / √(tᵀ Σ t),  p = sigmoid(gain · (z − offset)),  where μ and Σ are the mean and
              covariance of normalised embeddings of ordinary photos: z counts deviations above the ordinary
    neutral   p = softmax over (t, a neutral sentence) of scale · cos: sigmoid(scale · (cos(x, t) − cos(x, neutral)))
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Method, Options, Output

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "photo": ("a photo depicting {}.",),
    "ensemble": (
        "{}",
        "a photo of {}.",
        "a photo depicting {}.",
        "a photo that expresses {}.",
        "a photo taken to show {}.",
        "a photo shared because of {}.",
        "a picture about {}.",
    ),
}
"""Template sets by name; "{}" stands for the class's words. "photo" is the paper's."""


class ZeroShotOptions(Options, frozen=True):
    """Options of the zero-shot classifier.

    Attributes:
        sentence_form: Which words of a class; "fine" are the names.
        templates: Name of a set of `TEMPLATES`, or templates; text features are averaged over them.
        scoring: "moments", "neutral", or "auto": moments where the backbone has them.
        gain: Slope of the sigmoid, per deviation (moments).
        offset: Deviations above the ordinary at which p = 0.5 (moments); 1.5 calls 7 % of ordinary photos positive if
            cosines are normal, two labels of 28.
        neutral: The neutral sentence (neutral).
        scale: Scale of cosines (neutral); CLIP's own is 100.
    """

    sentence_form: str = "11-15"
    templates: str | tuple[str, ...] = "plain"
    scoring: Literal["auto", "moments", "neutral"] = "auto"
    gain: float = Field(default=2, gt=0)
    offset: float = 1.5
    neutral: str = "a photo."
    scale: float = Field(default=100, gt=0)

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(templates, str):
            if templates not in TEMPLATES:
                raise ValueError(f"unknown template set {templates!r}; known: {', '.join(TEMPLATES)}")
        elif not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("each template must hold {} once, and there must be one")
        return templates


class ZeroShot(Method):
    """Nothing trains; text features are computed once, when it is built."""

    needs = ("pooled", "regions")
    text: Tensor
    center: Tensor
    gain: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: ZeroShotOptions) -> None:
        super().__init__(backbone, taxonomy)
        self.options = options
        templates = TEMPLATES[options.templates] if isinstance(options.templates, str) else options.templates
        moments = _moments(backbone, options)
        with torch.no_grad():
            text = encode_classes(backbone, taxonomy.sentences(options.sentence_form), templates)
            if moments is None:
                neutral = encode_classes(backbone, [options.neutral], ("{}",))
                direction, center, gain = (
                    text - neutral,
                    torch.zeros(len(text)),
                    torch.full((len(text),), options.scale),
                )
            else:
                mean, covariance = (moment.to(text) for moment in moments)
                deviation = torch.einsum("kd,de,ke->k", text, covariance, text).clamp_min(1e-12).sqrt()
                direction, gain = text, options.gain / deviation
                center = text @ mean + options.offset * deviation
        # Not stored: they follow from the backbone, the sentences and the options, which a bundle keeps.
        self.register_buffer("text", direction, persistent=False)
        self.register_buffer("center", center.to(text), persistent=False)
        self.register_buffer("gain", gain.to(text), persistent=False)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Logits (B, K); "sight" maps are the logits of single regions in place of the photo."""
        output = Output(self._logits(features["pooled"]))
        if maps and "regions" in features:
            regions = features["regions"]
            logits = self._logits(regions.flatten(2).transpose(1, 2)).transpose(1, 2)
            output.maps["sight"] = logits.reshape(*logits.shape[:2], *regions.shape[2:])
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Binary cross-entropy, for the log only."""
        return {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}

    def _logits(self, embeddings: Tensor) -> Tensor:
        return self.gain * (F.normalize(embeddings, dim=-1) @ self.text.T - self.center)


def encode_classes(backbone: Backbone, sentences: list[str], templates: tuple[str, ...]) -> Tensor:
    """Unit text features (K, D): the mean over templates of unit features, made unit again."""
    device = next(backbone.text.parameters()).device
    texts = [template.replace("{}", sentence) for sentence in sentences for template in templates]
    features = F.normalize(backbone.encode_text(backbone.tokenize(texts).to(device)), dim=1)
    return F.normalize(features.view(len(sentences), len(templates), -1).mean(dim=1), dim=1)


def _moments(backbone: Backbone, options: ZeroShotOptions) -> tuple[Tensor, Tensor] | None:
    moments = backbone.image_moments
    if options.scoring == "moments" and moments is None:
        raise RecipeError(f"backbone {backbone.name} has no image moments; take scoring neutral or auto")
    return None if options.scoring == "neutral" else moments
