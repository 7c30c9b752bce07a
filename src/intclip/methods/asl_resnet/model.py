"""A linear classifier on the mean over an image tower's regions, trained with asymmetric loss.

Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021. The contribution is the loss; the network is
plain.
"""

from pydantic import Field
from torch import nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest


class AslResnetOptions(ClassifierOptions, frozen=True):
    """Options of the plain classifier.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained.
        dropout: Dropout on the mean of the regions.
        loss: γ₊ 0, γ₋ 4, margin 0.05, as in the released script for COCO.
        deep_lr: Multiplier of the learning rate for the deep layers; 1 in the released code.
    """

    visual: MapOptions = MapOptions()
    dropout: float = Field(default=0.0, ge=0, lt=1)
    loss: LossOptions = LossOptions(gamma_pos=0, gamma_neg=4, margin=0.05, reduction="batch")
    deep_lr: float = Field(default=1.0, gt=0)


class AslResnet(Classifier):
    """Feature map, mean over regions, linear layer."""

    Options = AslResnetOptions
    options: AslResnetOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: AslResnetOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(self.visual.channels, len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is the head at every region, whose mean is the logit.

        The extra "visual" is the feature map, (B, C, H, W).
        """
        visual = self.visual(self.backbone, features)
        output = Output(self.head(self.dropout(visual.mean(dim=(2, 3)))), extras={"visual": visual})
        if maps:
            output.maps["fused"] = region_map(self.head, visual)
        return output

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
