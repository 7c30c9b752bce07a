"""MSRCA: self-attention over regions of several levels of a feature pyramid.

After the published description of Zhang and others, Image Sentiment Classification via Multi-Level Sentiment Region
Correlation Analysis (2022); the details are ours, see README.md in this folder.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.branches import Branch
from intclip.methods.feature_pyramid import FeaturePyramid
from intclip.methods.loss_options import LossOptions
from intclip.methods.query_decoder import EncoderLayer
from intclip.methods.region_maps import region_map
from intclip.methods.stage_maps import LAST, stage_maps, stage_sources
from intclip.methods.visual_map import deep_and_rest

_STAGES = (2, 3, LAST)


class MsrcaOptions(ClassifierOptions, frozen=True):
    """Options of MSRCA.

    Attributes:
        train: "deep" trains a copy of the deep layers, which gives the last stage.
        dim: Width of pyramid and attention; a multiple of `heads`.
        heads: Heads of the self-attention.
        layers: Self-attention layers over all regions.
        regions: Number of regions per side in each level's map, fine to coarse.
        dropout: Dropout in the self-attention.
        loss: The classification loss.
        deep_lr: Multiplier of the learning rate for the deep layers.
    """

    train: Literal["none", "deep"] = "deep"
    dim: int = Field(default=256, gt=0)
    heads: int = Field(default=4, gt=0)
    layers: int = Field(default=1, ge=1)
    regions: tuple[int, int, int] = (6, 4, 2)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    loss: LossOptions = LossOptions(reduction="batch")
    deep_lr: float = Field(default=1.0, gt=0)


class Msrca(Classifier):
    """Pyramid, regions and self-attention; classifies the mean of the regions and of the last map."""

    Options = MsrcaOptions
    options: MsrcaOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: MsrcaOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.branch = Branch(backbone.deep) if options.train == "deep" else None
        shapes, self._sources = stage_sources(backbone, _STAGES, trains=self.branch is not None)
        self.needs = tuple(dict.fromkeys(self._sources.values()))
        dim = options.dim
        self.pyramid = FeaturePyramid([shapes[stage][0] for stage in _STAGES], dim)
        self.level = nn.Parameter(0.02 * torch.randn(len(_STAGES), dim))
        self.relate = nn.ModuleList(
            EncoderLayer(dim, options.heads, 4 * dim, options.dropout) for _ in range(options.layers)
        )
        self.head = nn.Linear(dim + shapes[LAST][0], len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "fused" is the logit with the last map's mean replaced by one region."""
        stages = stage_maps(self.backbone, features, self._sources, self.branch)
        visual = stages[LAST]
        parts = []
        for number, (level, side) in enumerate(zip(self.pyramid(stages), self.options.regions, strict=True)):
            grid = (min(side, int(level.shape[2])), min(side, int(level.shape[3])))
            parts.append(F.adaptive_avg_pool2d(level, grid).flatten(2).transpose(1, 2) + self.level[number])
        regions = torch.cat(parts, dim=1)
        nowhere = regions.new_zeros(regions.shape[1], regions.shape[2])
        for layer in self.relate:
            regions = layer(regions, nowhere)
        related = regions.mean(dim=1)
        output = Output(self.head(torch.cat([related, visual.mean(dim=(2, 3))], dim=1)))
        if maps:
            output.maps["fused"] = region_map(
                lambda rows: self.head(torch.cat([related[:, None].expand(-1, rows.shape[1], -1), rows], dim=2)), visual
            )
        return output

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.branch, self.options.deep_lr)
