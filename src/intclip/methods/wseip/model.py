"""WSEIP: emotional regions, learned from photo labels only, weight the features of a second classifier.

After the published description of Zhang and Xu, Weakly Supervised Emotion Intensity Prediction for Recognition of
Emotions in Images (2020); the details are ours, see README.md in this folder.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.branches import Branch
from intclip.methods.feature_pyramid import FeaturePyramid
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map
from intclip.methods.stage_maps import LAST, stage_maps, stage_sources
from intclip.methods.visual_map import deep_and_rest

_STAGES = (3, LAST)


class WseipOptions(ClassifierOptions, frozen=True):
    """Options of WSEIP.

    Attributes:
        train: "deep" trains a copy of the deep layers, which gives the last stage.
        dim: Width of the feature pyramid.
        first: Weight of the first stream's classification loss.
        intensity: Weight of the intensity stream's squared error.
        loss: The classification loss of both classifiers.
        deep_lr: Multiplier of the learning rate for the deep layers.
    """

    train: Literal["none", "deep"] = "deep"
    dim: int = Field(default=256, gt=0)
    first: float = Field(default=1.0, ge=0)
    intensity: float = Field(default=1.0, ge=0)
    loss: LossOptions = LossOptions(reduction="batch")
    deep_lr: float = Field(default=1.0, gt=0)


class Wseip(Classifier):
    """Two classification streams with an intensity stream between them."""

    Options = WseipOptions
    options: WseipOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: WseipOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.branch = Branch(backbone.deep) if options.train == "deep" else None
        shapes, self._sources = stage_sources(backbone, _STAGES, trains=self.branch is not None)
        self.needs = tuple(dict.fromkeys(self._sources.values()))
        channels = shapes[LAST][0]
        self.first = nn.Linear(channels, len(taxonomy))
        self.pyramid = FeaturePyramid([shapes[stage][0] for stage in _STAGES], options.dim)
        self.intensity = nn.Conv2d(options.dim, 1, 1)
        self.second = nn.Linear(2 * channels, len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K) of the second stream; "fused" has the weighted mean replaced by one region.

        Extras are "first" (B, K), the first stream's logits, "intensity" (B, H, W) in [0, 1], and "activation"
        (B, K, H, W), the first stream's class activation maps.
        """
        stages = stage_maps(self.backbone, features, self._sources, self.branch)
        visual = stages[LAST]
        mean = visual.mean(dim=(2, 3))
        height, width = int(visual.shape[2]), int(visual.shape[3])
        levels = [torch.sigmoid(self.intensity(level)) for level in self.pyramid(stages)]
        intensity = torch.stack([F.adaptive_avg_pool2d(level, (height, width)) for level in levels]).mean(dim=0)
        weighted = (visual * intensity).sum(dim=(2, 3)) / intensity.sum(dim=(2, 3)).clamp_min(1e-6)
        output = Output(self.second(torch.cat([mean, weighted], dim=1)))
        output.extras = {
            "first": self.first(mean),
            "intensity": intensity.squeeze(1),
            "activation": region_map(self.first, visual),
        }
        if maps:
            output.maps["fused"] = region_map(
                lambda rows: self.second(torch.cat([mean[:, None].expand_as(rows), rows], dim=2)), visual
            )
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return both classifiers' losses, and the squared error of the intensity against the pseudo maps."""
        pseudo = pseudo_intensity(output.extras["activation"].detach(), targets)
        # A photo without known positive labels has no pseudo map.
        known = (targets.nan_to_num(0).sum(dim=1) > 0).float()
        squared = (output.extras["intensity"] - pseudo).square().mean(dim=(1, 2))
        error = (squared * known).sum() / targets.shape[0]
        return {
            "classification": self.options.loss(output.logits, targets),
            "first": self.options.first * self.options.loss(output.extras["first"], targets),
            "intensity": self.weighed(self.options.intensity * error, targets.shape[0]),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.branch, self.options.deep_lr)


def pseudo_intensity(activation: Tensor, targets: Tensor) -> Tensor:
    """Return class activation maps (B, K, H, W), weighted by labels (B, K) and scaled to [0, 1]: (B, H, W)."""
    y = targets.nan_to_num(0)
    share = y / y.sum(dim=1, keepdim=True).clamp_min(1e-6)
    found = (activation * share[:, :, None, None]).sum(dim=1)
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    return (found - low) / (high - low).clamp_min(1e-6)
