"""A vision transformer split into trunk, deep layers and head, with rotary positions in some families."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import ImageHead
from intclip.backbones.clip_vit import PatchEmbedding, VitHead, prefix_tokens
from intclip.backbones.families import TRAITS, Rotary
from intclip.backbones.map_head import MapHead
from intclip.backbones.region_block import RegionBlock
from intclip.backbones.transformer import Block, BlockSpec

DEEP_SHARE = 0.25
"""Share of the blocks that are deep: the last 3 of 12 (IntCLIP, ECCV 2024), the last 6 of 24."""
ROTARY_BASE = 10000.0


def deep_blocks(layers: int) -> int:
    """Return the number of a ViT's deep blocks: its last quarter, at least one."""
    return max(1, round(layers * DEEP_SHARE))


def rotation(rotary: Rotary, grid: int, channels: int, prefix: int) -> Tensor:
    """Return cosines and sines (2, P + grid², channels) of a head's rotary positions.

    Tokens before the patches are not rotated. One coordinate rotates the first half of the channels, the other the
    second half, pair i of n by position · 10000^(−i/n) (Su et al., RoFormer, 2021, in two dimensions as in EVA-02).
    """
    # On the CPU, not on a surrounding meta device: weights are loaded later, but this table is not.
    places = torch.arange(grid, dtype=torch.float32, device="cpu") + rotary.offset
    if rotary.reference is not None:
        places = places / grid * rotary.reference
    pairs = channels // 4
    bands = ROTARY_BASE ** -(torch.arange(pairs, dtype=torch.float32, device="cpu") / pairs)
    rows = places[:, None, None].expand(grid, grid, 1)
    columns = places[None, :, None].expand(grid, grid, 1)
    first, second = (rows, columns) if rotary.order == "yx" else (columns, rows)
    angles = torch.cat([first * bands, second * bands], dim=2).flatten(0, 1).repeat_interleave(2, dim=1)
    angles = torch.cat([torch.zeros(prefix, channels, device="cpu"), angles])
    return torch.stack([angles.cos(), angles.sin()])


def build_vit(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential, ImageHead]:
    """Build trunk (embedding and first blocks), deep layers (last quarter) and head; weights are loaded later.

    Args:
        architecture: Sizes of a ViT.
    """
    if architecture.patch_size is None or not isinstance(architecture.vision_layers, int):
        raise ValueError("a ViT has patches and a number of blocks")
    traits = TRAITS[architecture.family]
    spec = BlockSpec(
        architecture.vision_width,
        architecture.vision_heads,
        architecture.vision_mlp,
        architecture.activation,
        architecture.vision_eps,
        layer_scale=traits.layer_scale,
        gated=traits.gated,
        inner_norm=traits.inner_norm,
    )
    turned = None
    if traits.rotary is not None:
        turned = rotation(traits.rotary, architecture.grid, spec.width // spec.head_count, prefix_tokens(architecture))
    layers = architecture.vision_layers
    blocks = [(f"block{i}", Block(spec, turned)) for i in range(layers)]
    if architecture.regions != "tokens":
        last = RegionBlock(spec, turned, architecture.regions, prefix_tokens(architecture))
        blocks[-1] = (blocks[-1][0], last)
    cut = layers - deep_blocks(layers)
    trunk = nn.Sequential(OrderedDict([("embedding", PatchEmbedding(architecture)), *blocks[:cut]]))
    head = MapHead(architecture) if traits.pooling == "map" else VitHead(architecture)
    return trunk, nn.Sequential(OrderedDict(blocks[cut:])), head
