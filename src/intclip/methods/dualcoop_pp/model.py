"""DualCoOp++: a third prompt per class selects regions, and classes compete for every region.

Hu, Sun, Sclaroff, Saenko: DualCoOp++: Fast and Effective Adaptation to Multi-Label Recognition with Limited
Annotations, TPAMI 2023. README.md in this folder has the equations.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup, at_least_float32
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import NEGATIVE, POSITIVE, PromptLearner, PromptOptions

EVIDENCE = 2
"""Index of the evidence prompts, after the negative and the positive ones."""
_SHARPNESS = 200


class DualcoopPpOptions(PromptOptions, ClassifierOptions, frozen=True):
    """Options of DualCoOp++.

    Attributes:
        log_sharpness: Initial s, learned: region weights are the softmax of e^s · cos(region, evidence prompt).
        log_scale: Logarithm of the scale of cosines.
        winner: Effect of a class's share w of a region on its positive similarity: "share" multiplies it by w,
            "boost" by 1 + w (the released code's mode pos200), "none" has no effect.
        loss: The classification loss.
    """

    context_length: int = Field(default=21, ge=0)
    log_sharpness: float = 3.0
    log_scale: float = 3.0
    winner: Literal["share", "boost", "none"] = "share"
    loss: LossOptions = LossOptions(scale=0.03)


class DualCoOpPP(Classifier):
    """Compares evidence, positive and negative prompts with frozen region features."""

    Options = DualcoopPpOptions
    options: DualcoopPpOptions
    needs = ("regions",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: DualcoopPpOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.prompts = PromptLearner(backbone.text, options.sentences(taxonomy), options, halves=3)
        self.log_sharpness = nn.Parameter(torch.tensor(float(options.log_sharpness)))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "sight" is the logit of every region as if it were the only one."""
        regions = features["regions"]
        text = self.prompts(self.backbone.text)
        with torch.autocast(regions.device.type, enabled=False):  # the scale is too large for 8-bit cosines
            rows = F.normalize(at_least_float32(regions).flatten(2).transpose(1, 2), dim=2)
            # (B, 3, K, N)
            cosines = (rows.unsqueeze(1) @ F.normalize(at_least_float32(text), dim=2).transpose(1, 2)).transpose(2, 3)
        weights = (self.log_sharpness.exp() * cosines[:, EVIDENCE]).softmax(dim=2)
        scores = region_scores(cosines[:, POSITIVE], cosines[:, NEGATIVE], self.options.winner)
        scores = math.exp(self.options.log_scale) * scores
        output = Output((weights * scores).sum(dim=2))
        if maps:
            output.maps["sight"] = scores.reshape(*scores.shape[:2], *regions.shape[2:])
        return output

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "prompts" and, without weight decay, "sharpness"."""
        return [
            ParameterGroup("prompts", [self.prompts.context]),
            ParameterGroup("sharpness", [self.log_sharpness], weight_decay_multiplier=0),
        ]


def region_scores(positive: Tensor, negative: Tensor, winner: Literal["share", "boost", "none"]) -> Tensor:
    """Return positive minus negative similarity (B, K, N), the positive one weighted by the competition.

    w = softmax over classes of 200 · cos⁺ · max over classes of cos⁺.

    Args:
        positive: Cosines (B, K, N) with the positive prompts.
        negative: Cosines (B, K, N) with the negative prompts.
        winner: See `DualcoopPpOptions`.
    """
    if winner == "none":
        return positive - negative
    share = (_SHARPNESS * positive * positive.amax(dim=1, keepdim=True)).softmax(dim=1)
    return positive * (share if winner == "share" else 1 + share) - negative
