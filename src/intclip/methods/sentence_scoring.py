"""Convert cosines of photos with class sentences to logits on one scale for all sentences, without labels.

A cosine is not a probability, and the mean and spread of cosines differ between sentences. Three scales:

    sigmoid   p = sigmoid(e^scale · cos(x, t) + bias), as in SigLIP's training: low, since most pairs of a batch do not
              match; only their order is meaningful
    moments   z = (cos(x, t) − t·μ) / √(tᵀ Σ t),  p = sigmoid(gain · (z − offset)),  where μ and Σ are the mean and
              covariance of normalised embeddings of ordinary photos: z is in standard deviations above them
    neutral   p = softmax over (t, a neutral sentence) of scale · cos: sigmoid(scale · (cos(x, t) − cos(x, neutral)))

All are differentiable in t, so they can be used with learned prompts.
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
    """Options of the scale; base of methods' options.

    Attributes:
        scoring: "sigmoid", "moments", "neutral", or "auto": the backbone's own sigmoid if it has one, else moments
            if it has them, else neutral.
        gain: Slope of the sigmoid per standard deviation (moments).
        offset: Standard deviations above ordinary photos at which p = 0.5 (moments); with 1.5, 7 % of ordinary photos
            are positive if cosines are normally distributed, or two labels of 28.
        neutral: Neutral sentence (neutral).
        scale: Scale of cosines (neutral); 100 in CLIP.
    """

    scoring: Literal["auto", "sigmoid", "moments", "neutral"] = "auto"
    gain: float = Field(default=2, gt=0)
    offset: float = 1.5
    neutral: str = "a photo."
    scale: float = Field(default=100, gt=0)


class SentenceScoring(nn.Module):
    """Scale of class sentences, without trained or stored parameters.

    Args:
        backbone: Provides the moments, or encodes the neutral sentence; not stored.
        options: Options of the scale.

    Raises:
        RecipeError: The backbone lacks the requested sigmoid or moments.
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
        # Not stored: derived from the backbone and the options, which are in the bundle.
        if moments is not None and self.by_moments:
            parameter = next(backbone.text.parameters())
            self.register_buffer("mean", moments[0].to(parameter), persistent=False)
            self.register_buffer("covariance", moments[1].to(parameter), persistent=False)
        elif self.sigmoid is None:
            neutral = encode_classes(backbone, [options.neutral], ("{}",))[0]
            self.register_buffer("neutral", neutral, persistent=False)

    def scales(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parameters of logits gain · (x · direction − center) of unit embeddings x.

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
        """Compute logits of photo embeddings; neither they nor the text features need to be normalised.

        Args:
            embeddings: (B, N, D): N vectors per photo.
            text: (K, D), or (B, K, D) for text features per photo.

        Returns:
            (B, N, K).
        """
        direction, center, gain = self.scales(F.normalize(text, dim=-1))
        cosines = F.normalize(embeddings, dim=-1) @ direction.transpose(-1, -2)
        scaled: Tensor = gain.unsqueeze(-2) * (cosines - center.unsqueeze(-2))
        return scaled


@torch.no_grad()
def encode_classes(backbone: Backbone, sentences: list[str], templates: tuple[str, ...]) -> Tensor:
    """Return unit text features (K, D) of sentences in templates; see `encode_texts`."""
    return encode_texts(backbone, [[each.replace("{}", sentence) for each in templates] for sentence in sentences])


@torch.no_grad()
def encode_texts(backbone: Backbone, texts: Sequence[Sequence[str]]) -> Tensor:
    """Return unit text features (K, D) of K classes: the normalised mean of the unit features of a class's texts."""
    features = backbone.embed_texts([text for own in texts for text in own])
    means = [part.mean(dim=0) for part in torch.split(features, [len(own) for own in texts])]
    return F.normalize(torch.stack(means), dim=1)
