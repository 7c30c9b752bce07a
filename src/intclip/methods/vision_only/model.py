"""The vision-only baseline of PositiveCoOp: a linear layer on every region, without text.

    s_n = W x_n + b (2K), x_n not normalised;   w = softmax over regions of s, separately for each half
    z = 5 · Σ_n w_n s_n;   logit = z⁺ − z⁻

Rawlekar, Bhatnagar, Ahuja: Rethinking Prompting Strategies for Multi-Label Recognition with Partial Annotations, WACV
2025.
"""

from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map


class VisionOnlyOptions(ClassifierOptions, frozen=True):
    """Options of the baseline.

    Attributes:
        logit_scale: Scale of pooled scores.
        loss: The classification loss.
    """

    logit_scale: float = Field(default=5, gt=0)
    loss: LossOptions = LossOptions(scale=0.03)


class VisionOnly(Classifier):
    """Two linear scores per class at every region, pooled by their own softmax."""

    Options = VisionOnlyOptions
    options: VisionOnlyOptions
    needs = ("regions",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: VisionOnlyOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.scores = nn.Linear(backbone.embed_dim, 2 * len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K) and the "sight" map."""
        scores = self.scores(features["regions"].flatten(2).transpose(1, 2))
        pooled = (scores.softmax(dim=1) * scores).sum(dim=1)
        output = Output(self._difference(pooled))
        if maps:
            output.maps["sight"] = region_map(lambda rows: self._difference(self.scores(rows)), features["regions"])
        return output

    def _difference(self, scores: Tensor) -> Tensor:
        """Return logits (…, K) of scores (…, 2K), negatives first."""
        negative, positive = scores.chunk(2, dim=-1)
        return self.options.logit_scale * (positive - negative)
