"""Maps of some of the backbone's four stages, the last one optionally from a trainable copy of the deep layers."""

from collections.abc import Iterable

import torch
from torch import Tensor

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.methods.branches import Branch

STAGES: dict[int, FeatureName] = {1: "stage1", 2: "stage2", 3: "stage3", 4: "stage4"}
LAST = 4


def stage_sources(
    backbone: Backbone, stages: Iterable[int], *, trains: bool
) -> tuple[dict[int, tuple[int, ...]], dict[int, FeatureName]]:
    """Return the shapes of the stages' maps without the batch, and the source feature of each.

    If a stage is the trunk's output, "trunk" is used, so that there are fewer features to cache and methods share them.

    Args:
        backbone: Runs one photo to determine shapes.
        stages: Some of 1 to 4, fine to coarse.
        trains: A copy of the deep layers is trained and gives stage 4.
    """
    stages = tuple(stages)
    size, device = backbone.image_size, next(backbone.parameters()).device
    noise = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    found = backbone.features(noise, ("trunk", "stages"))
    shapes = {stage: tuple(found[STAGES[stage]].shape[1:]) for stage in stages}
    sources = {stage: STAGES[stage] for stage in stages}
    if trains:
        shapes[LAST] = tuple(backbone.deep_map(backbone.deep(found["trunk"])).shape[1:])
        sources[LAST] = "trunk"
        sources |= {s: "trunk" for s in stages if s != LAST and torch.equal(found[STAGES[s]], found["trunk"])}
    return shapes, sources


def stage_maps(
    backbone: Backbone, features: Features, sources: dict[int, FeatureName], branch: Branch | None
) -> dict[int, Tensor]:
    """Return maps (B, C_i, H_i, W_i) by stage, from the sources of `stage_sources`."""
    maps = {stage: features[source] for stage, source in sources.items()}
    if branch is not None:
        maps[LAST] = backbone.deep_map(branch(features["trunk"]))
    return maps
