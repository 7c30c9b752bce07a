"""From cosines of photos with class sentences to logits of their own: one scale for all sentences, without labels.

A cosine is not a probability, and each sentence has cosines of its own level and spread. Three ways:

    sigmoid   p = sigmoid(e^scale · cos(x, t) + bias), as SigLIP was trained: low, since most pairs of a batch did not
              match; calibrate it on labelled photos
    moments   z = (cos(x, t) − t·μ) / √(tᵀ Σ t),  p = sigmoid(gain · (z − offset)),  where μ and Σ are the mean and
              covariance of normalised embeddings of ordinary photos: z counts deviations above the ordinary
    neutral   p = softmax over (t, a neutral sentence) of scale · cos: sigmoid(scale · (cos(x, t) − cos(x, neutral)))

Both are differentiable in t, so learned prompts take them as they are.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone
from intclip.errors import RecipeError
from intclip.methods.base import Options


class ScoringOptions(Options, frozen=True):
    """Options of the scale; a method's options extend them.

    Attributes:
        scoring: "sigmoid", "moments", "neutral", or "auto": the backbone's own sigmoid where it has one, else moments
            where it has them, else neutral.
        gain: Slope of the sigmoid, per deviation (moments).
        offset: Deviations above the ordinary at which p = 0.5 (moments); 1.5 calls 7 % of ordinary photos positive if
            cosines are normal, two labels of 28.
        neutral: The neutral sentence (neutral).
        scale: Scale of cosines (neutral); CLIP's own is 100.
    """

    scoring: Literal["auto", "sigmoid", "moments", "neutral"] = "auto"
    gain: float = Field(default=2, gt=0)
    offset: float = 1.5
    neutral: str = "a photo."
    scale: float = Field(default=100, gt=0)


class SentenceScoring(nn.Module):
    """Scale of class sentences; nothing trains and nothing is stored.

    Args:
        backbone: For its moments, or to encode the neutral sentence; it is not held.
        options: Which scale.

    Raises:
        RecipeError: A sigmoid or moments are asked for and the backbone has none.
    """

    mean: Tensor
    covariance: Tensor
    neutral: Tensor

    def __init__(self, backbone: Backbone, options: ScoringOptions) -> None:
        super().__init__()
        self.options = options
        moments = backbone.image_moments
        if options.scoring == "moments" and moments is None:
            raise RecipeError(f"backbone {backbone.name} has no image moments; use scoring neutral or auto")
        own = backbone.logit_sigmoid()
        if options.scoring == "sigmoid" and own is None:
            raise RecipeError(f"backbone {backbone.name} was not trained with a sigmoid; use scoring neutral or auto")
        self.sigmoid = own if options.scoring in ("auto", "sigmoid") else None
        self.by_moments = moments is not None and self.sigmoid is None and options.scoring != "neutral"
        # Not stored: derived from the backbone and the options, which the bundle has.
        if moments is not None and self.by_moments:
            parameter = next(backbone.text.parameters())
            self.register_buffer("mean", moments[0].to(parameter), persistent=False)
            self.register_buffer("covariance", moments[1].to(parameter), persistent=False)
        elif self.sigmoid is None:
            neutral = encode_classes(backbone, [options.neutral], ("{}",))[0]
            self.register_buffer("neutral", neutral, persistent=False)

    def scales(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What makes logits gain · (x · direction − center) of unit embeddings x.

        Args:
            text: Unit text features (…, K, D).

        Returns:
            direction (…, K, D), center (…, K) and gain (…, K).
        """
        if self.sigmoid is not None:
            scale, bias = self.sigmoid
            zeros = text.new_zeros(text.shape[:-1])
            return text, zeros - bias / scale, zeros + scale
        if not self.by_moments:
            direction = text - self.neutral
            zeros = direction.new_zeros(direction.shape[:-1])
            return direction, zeros, zeros + self.options.scale
        variance = ((text @ self.covariance) * text).sum(dim=-1)
        deviation = variance.clamp_min(1e-12).sqrt()
        return text, text @ self.mean + self.options.offset * deviation, self.options.gain / deviation

    def forward(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Logits of photos' embeddings, neither they nor the text features need be of length 1.

        Args:
            embeddings: (B, N, D): N vectors a photo.
            text: (K, D), or (B, K, D) where each photo has its own.

        Returns:
            (B, N, K).
        """
        direction, center, gain = self.scales(F.normalize(text, dim=-1))
        cosines = F.normalize(embeddings, dim=-1) @ direction.transpose(-1, -2)
        scaled: Tensor = gain.unsqueeze(-2) * (cosines - center.unsqueeze(-2))
        return scaled


@torch.no_grad()
def encode_classes(backbone: Backbone, sentences: list[str], templates: tuple[str, ...]) -> Tensor:
    """Unit text features (K, D) of sentences in templates; see `encode_texts`."""
    return encode_texts(backbone, [[each.replace("{}", sentence) for each in templates] for sentence in sentences])


@torch.no_grad()
def encode_texts(backbone: Backbone, texts: Sequence[Sequence[str]]) -> Tensor:
    """Unit text features (K, D) of K classes: the mean of the unit features of a class's texts, made unit again."""
    features = backbone.embed_texts([text for own in texts for text in own])
    means = [part.mean(dim=0) for part in features.split([len(own) for own in texts])]
    return F.normalize(torch.stack(means), dim=1)
