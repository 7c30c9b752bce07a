"""Maps of several of the backbone's four stages, the last one from a trainable copy of the deep layers."""

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
    """Shapes of the stages' maps without the batch, and the feature that each is read from.

    Where a stage is the trunk's output, "trunk" is read: one feature fewer to cache, and the one that others cache.

    Args:
        backbone: One photo is computed.
        stages: Some of 1 to 4, fine to coarse.
        trains: A copy of the deep layers trains, and stage 4 is read from it.
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
    """Stage to its map (B, C_i, H_i, W_i), as `stage_sources` says they are read."""
    maps = {stage: features[source] for stage, source in sources.items()}
    if branch is not None:
        maps[LAST] = backbone.deep_map(branch(features["trunk"]))
    return maps
