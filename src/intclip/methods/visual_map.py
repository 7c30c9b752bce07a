"""Feature map of a method: frozen, or from a trainable copy of the deep layers."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.methods.base import Method, ParameterGroup
from intclip.methods.branches import Branch


class MapOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of a visual map.

    Attributes:
        train: "deep" trains a copy of the backbone's deep layers, "none" no image layers.
        space: "own" is the last layer's output (2048 channels for a ResNet), "joint" the head's region features in the
            joint space with text.
    """

    train: Literal["deep", "none"] = "deep"
    space: Literal["own", "joint"] = "own"


class VisualMap(nn.Module):
    """The feature map (B, C, H, W) of the options.

    Args:
        backbone: Frozen; not stored.
        options: Options of the map.

    Attributes:
        needs: Backbone features required by the map.
        channels: Number of channels C.
        branch: The trainable copy of the deep layers, if any.
    """

    def __init__(self, backbone: Backbone, options: MapOptions) -> None:
        super().__init__()
        self.options = options
        self.branch = Branch(backbone.deep) if options.train == "deep" else None
        frozen: FeatureName = "stage4" if options.space == "own" else "regions"
        self.needs: tuple[FeatureName, ...] = (frozen,) if self.branch is None else ("trunk",)
        self.channels = backbone.embed_dim
        if options.space == "own":
            self.channels = feature_shapes(backbone, ("stage4",))["stage4"][0]

    def forward(self, backbone: Backbone, features: Features) -> Tensor:
        """Compute the map from a batch of the features in `needs`."""
        if self.branch is None:
            return features[self.needs[0]]
        deep = self.branch(features["trunk"])
        return backbone.deep_map(deep) if self.options.space == "own" else backbone.head.regions(deep)

    @torch.no_grad()
    def grid(self, backbone: Backbone) -> tuple[int, int]:
        """Return height and width of the map, by running one black photo."""
        size, parameter = backbone.image_size, next(backbone.parameters())
        pixels = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
        height, width = self(backbone, backbone.features(pixels, self.needs)).shape[2:]
        return height, width


def deep_and_rest(method: Method, branch: Branch | None, multiplier: float) -> list[ParameterGroup]:
    """Return the parameter groups "deep", the trainable copy of the deep layers, if any, and "rest".

    Args:
        method: The method, whose learnable parameters are divided into the groups.
        branch: The copy.
        multiplier: Learning-rate multiplier of "deep".
    """
    deep = [] if branch is None else [parameter for parameter in branch.parameters() if parameter.requires_grad]
    known = set(map(id, deep))
    rest = [parameter for parameter in method.learnable_parameters() if id(parameter) not in known]
    groups = [ParameterGroup("deep", deep, multiplier), ParameterGroup("rest", rest)]
    return [group for group in groups if group.parameters]


def feature_shapes(backbone: Backbone, names: Iterable[FeatureName]) -> dict[str, tuple[int, ...]]:
    """Return shapes of backbone features by name, without the batch, by running one black photo."""
    size = backbone.image_size
    parameter = next(backbone.parameters())
    pixels = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
    return {name: tuple(value.shape[1:]) for name, value in backbone.features(pixels, names).items()}
