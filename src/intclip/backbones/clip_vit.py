"""CLIP's vision transformer in the contract's three parts (Radford et al., 2021, section 2.4)."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import ImageHead
from intclip.backbones.transformer import Block

DEEP_SHARE = 0.25
"""Share of the blocks that are deep: the last 3 of 12 (IntCLIP, ECCV 2024), the last 6 of 24."""


class PatchEmbedding(nn.Module):
    """Pixels to tokens: patches behind a class token, with positions, normalised.

    Args:
        patch: Side of a patch, in pixels.
        grid: Patches along a side of the image.
        width: Channels W of a token.
    """

    def __init__(self, patch: int, grid: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.ln_pre = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to tokens (B, 1 + N, W), the class token first."""
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        # Not len(): a tracer takes that for a constant, and the graph would take no other batch.
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        tokens: Tensor = self.ln_pre(torch.cat([first, patches], dim=1) + self.positional_embedding)
        return tokens


class VitHead(ImageHead):
    """The last norm and the projection, at every token alike.

    Args:
        width: Channels W of a token.
        embed_dim: Size D of the joint space.
    """

    def __init__(self, width: int, embed_dim: int) -> None:
        super().__init__()
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.empty(width, embed_dim))

    def regions(self, deep: Tensor) -> Tensor:
        """Region features (B, D, H, W) of tokens (B, 1 + HW, W): the patch tokens, normalised and projected."""
        projected: Tensor = self.ln_post(deep[:, 1:]) @ self.proj
        return as_map(projected)

    def pooled(self, deep: Tensor) -> Tensor:
        """Image embedding (B, D) of tokens (B, 1 + HW, W): the class token, normalised and projected."""
        embedding: Tensor = self.ln_post(deep[:, 0]) @ self.proj
        return embedding


def as_map(patches: Tensor) -> Tensor:
    """Patch tokens (B, HW, C) of a square image as a map (B, C, H, W)."""
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).unflatten(2, (side, side))


def deep_blocks(layers: int) -> int:
    """How many of a ViT's blocks are deep: its last quarter, at least one."""
    return max(1, round(layers * DEEP_SHARE))


def build_vit(architecture: Architecture) -> tuple[nn.Sequential, nn.Sequential, VitHead]:
    """Trunk (embedding and first blocks), deep layers (last quarter of the blocks) and head, weights yet to be loaded.

    Args:
        architecture: Of a ViT.
    """
    if architecture.patch_size is None or not isinstance(architecture.vision_layers, int):
        raise ValueError("a ViT has patches and a number of blocks")
    width, layers = architecture.vision_width, architecture.vision_layers
    blocks = [
        (f"block{i}", Block(width, architecture.vision_heads, architecture.vision_mlp, architecture.activation))
        for i in range(layers)
    ]
    cut = layers - deep_blocks(layers)
    embedding = PatchEmbedding(architecture.patch_size, architecture.grid, width)
    trunk = nn.Sequential(OrderedDict([("embedding", embedding), *blocks[:cut]]))
    return trunk, nn.Sequential(OrderedDict(blocks[cut:])), VitHead(width, architecture.embed_dim)
