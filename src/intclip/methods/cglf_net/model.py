"""CGLF-Net: a transformer branch for the whole photo and a branch of multi-scale convolutions for its parts.

After the published description of Luo and others, CGLF-Net: Image Emotion Recognition Network by Combining Global
Self-Attention Features and Local Multiscale Features (2023); the details are ours, see README.md in this folder.
"""

import torch
from pydantic import Field
from torch import nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.loss_options import LossOptions
from intclip.methods.query_decoder import EncoderLayer
from intclip.methods.region_maps import region_map
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest


class CglfNetOptions(ClassifierOptions, frozen=True):
    """Options of CGLF-Net.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained.
        dim: Width of both branches; a multiple of `heads`.
        heads: Heads of the self-attention.
        layers: Layers of the global branch.
        kernels: Sizes of the local branch's parallel convolutions, odd.
        dropout: Dropout in the self-attention.
        loss: The classification loss.
        deep_lr: Multiplier of the learning rate for the deep layers.
    """

    visual: MapOptions = MapOptions()
    dim: int = Field(default=256, gt=0)
    heads: int = Field(default=4, gt=0)
    layers: int = Field(default=2, ge=1)
    kernels: tuple[int, ...] = Field(default=(1, 3, 5), min_length=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    loss: LossOptions = LossOptions(reduction="batch")
    deep_lr: float = Field(default=1.0, gt=0)


class CglfNet(Classifier):
    """Global and local branch on one map, concatenated into one linear layer."""

    Options = CglfNetOptions
    options: CglfNetOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: CglfNetOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        dim = options.dim
        height, width = self.visual.grid(backbone)
        self.project = nn.Conv2d(self.visual.channels, dim, 1)
        self.whole = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.positions = nn.Parameter(0.02 * torch.randn(1 + height * width, dim))
        self.layers = nn.ModuleList(
            EncoderLayer(dim, options.heads, 4 * dim, options.dropout) for _ in range(options.layers)
        )
        self.scales = nn.ModuleList(nn.Conv2d(dim, dim, kernel, padding=kernel // 2) for kernel in options.kernels)
        self.head = nn.Linear(dim * (1 + len(options.kernels)), len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "fused" is the logit with the local branch's mean replaced by one region."""
        visual = self.project(self.visual(self.backbone, features))
        tokens = torch.cat([self.whole.expand(visual.shape[0], -1, -1), visual.flatten(2).transpose(1, 2)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, self.positions)
        whole = tokens[:, 0]
        local = torch.cat([torch.relu(scale(visual)) for scale in self.scales], dim=1)
        output = Output(self.head(torch.cat([whole, local.mean(dim=(2, 3))], dim=1)))
        if maps:
            output.maps["fused"] = region_map(
                lambda rows: self.head(torch.cat([whole[:, None].expand(-1, rows.shape[1], -1), rows], dim=2)), local
            )
        return output

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
