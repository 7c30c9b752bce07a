"""Pool region features to one logit per class: class-specific region pooling of dual prompts, mean or max.

    s = similarity_scale · cos(region, text)          (B, 2, K, N), halves (negative, positive)
    w = softmax over regions of the positive half     (B, K, N), shared by both halves
    z = logit_scale · Σ w · s                         (B, 2, K);   logit = z₊ − z₋, p = sigmoid(logit)

p is the paper's softmax over the two halves (Eq. 5). Source: DualCoOp, Sun et al., NeurIPS 2022, and its code.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.methods.base import Output, at_least_float32
from intclip.methods.prompts import NEGATIVE, POSITIVE

HALVES_PREFIX = "halves_"
"""Prefix of an output's extra with a map's scaled similarities (B, 2, K, H, W)."""

Pooling = Literal["class_specific", "mean", "max"]


class PoolingOptions(BaseModel, frozen=True, extra="forbid"):
    """Pooling of region similarities to logits.

    Attributes:
        pooling: "class_specific" (weights of the positive half), "mean" over regions, or "max" (the region where the
            positive half is strongest).
        similarity_scale: Scale of cosine similarities; also the sharpness of the region weights.
        logit_scale: Scale of pooled similarities.
        mean_region: Add the mean of all regions as an additional region, as in DualCoOp.
        learn_scales: Train both scales (as logarithms), initialised as above.
        bias: Add a learned bias to each class's logit. Small scales require it: the two halves of a prompt are
            initially similar, so without a bias every probability is initially one half, and rare labels cannot get far
            below.
        bias_start: Initial bias, in logits.
    """

    pooling: Pooling = "class_specific"
    similarity_scale: float = Field(default=20, gt=0)
    logit_scale: float = Field(default=5, gt=0)
    mean_region: bool = False
    learn_scales: bool = False
    bias: bool = False
    bias_start: float = 0


def region_similarities(regions: Tensor, text: Tensor) -> Tensor:
    """Return cosines (B, 2, K, N) of regions (B, D, N) and text features (2, K, D), float32 also under autocast.

    A logit is about 100 times the difference of two cosines: in bfloat16 (8 bits), rounding one cosine of 0.5 would
    change it by up to 0.1.
    """
    halves, classes = text.shape[:2]
    with torch.autocast(regions.device.type, enabled=False):
        rows, text = at_least_float32(regions).transpose(1, 2), at_least_float32(text)
        # Dividing products by norms is cheaper than normalising regions, forward and backward.
        products = rows @ F.normalize(text, dim=2).flatten(0, 1).T
        cosines: Tensor = products / rows.norm(dim=2, keepdim=True).clamp_min(1e-12)
    return cosines.view(*cosines.shape[:2], halves, classes).permute(0, 2, 3, 1)


def pool_similarities(similarities: Tensor, pooling: Pooling = "class_specific") -> Tensor:
    """Pool scaled similarities (B, 2, K, N) over regions to (B, 2, K)."""
    positive = similarities[:, POSITIVE]
    if pooling == "mean":
        return similarities.mean(dim=-1)
    if pooling == "max":
        strongest = positive.argmax(dim=-1, keepdim=True)
        return similarities.gather(-1, strongest.unsqueeze(1).expand(-1, 2, -1, -1)).squeeze(-1)
    return (similarities * positive.softmax(dim=-1).unsqueeze(1)).sum(dim=-1)


class RegionPooling(nn.Module):
    """Logits (B, K) of region features and dual text features, with fixed or learned scales.

    Args:
        options: See `PoolingOptions`.
        classes: Number K of classes, for the bias.
    """

    def __init__(self, options: PoolingOptions, classes: int) -> None:
        super().__init__()
        self.pooling, self.mean_region = options.pooling, options.mean_region
        self.fixed_scales = (options.similarity_scale, options.logit_scale)
        self.log_scales = nn.Parameter(torch.tensor(self.fixed_scales).log()) if options.learn_scales else None
        self.bias = nn.Parameter(torch.full((classes,), float(options.bias_start))) if options.bias else None

    def scales(self) -> tuple[Tensor | float, Tensor | float]:
        """Return the current similarity scale and logit scale."""
        if self.log_scales is None:
            return self.fixed_scales
        similarity, logit = self.log_scales.exp().unbind()
        return similarity, logit

    def forward(self, regions: Tensor, text: Tensor, more: Tensor | None = None) -> Tensor:
        """Compute logits (B, K).

        Args:
            regions: (B, D, H, W).
            text: (2, K, D), negative and positive half.
            more: (B, D, M), additional regions to pool.
        """
        flat = regions.flatten(2)
        if self.mean_region:
            flat = torch.cat([flat, flat.mean(dim=2, keepdim=True)], dim=2)
        if more is not None:
            flat = torch.cat([flat, more], dim=2)
        scale, logit_scale = self.scales()
        halves = logit_scale * pool_similarities(scale * region_similarities(flat, text), self.pooling)
        return self._with_bias(halves[:, POSITIVE] - halves[:, NEGATIVE])

    def map(self, regions: Tensor, text: Tensor) -> Tensor:
        """Return region logits (B, K, H, W): the logit of each region on its own."""
        return self._map(self._halves(regions, text))

    def show(self, output: Output, name: str, regions: Tensor, text: Tensor) -> None:
        """Add a map to an output, and its similarities (B, 2, K, H, W) to both prompts as an extra."""
        halves = self._halves(regions, text)
        output.maps[name] = self._map(halves)
        output.extras[HALVES_PREFIX + name] = halves

    def _halves(self, regions: Tensor, text: Tensor) -> Tensor:
        similarities = self.scales()[0] * region_similarities(regions.flatten(2), text)
        return similarities.reshape(*similarities.shape[:3], *regions.shape[2:])

    def _map(self, halves: Tensor) -> Tensor:
        return self._with_bias(self.scales()[1] * (halves[:, POSITIVE] - halves[:, NEGATIVE]))

    def _with_bias(self, logits: Tensor) -> Tensor:
        if self.bias is None:
            return logits
        return logits + self.bias.view(-1, *[1] * (logits.dim() - 2))
