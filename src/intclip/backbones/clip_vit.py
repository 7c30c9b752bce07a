"""First and last part of a vision transformer: pixels to tokens, tokens to the joint space (Radford et al., 2021)."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import ImageHead
from intclip.backbones.families import TRAITS
from intclip.errors import CheckpointError


class PatchEmbedding(nn.Module):
    """Embeds pixels as tokens with positions: class token and registers, if any, then patches.

    Args:
        architecture: Sizes of a ViT.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        traits = TRAITS[architecture.family]
        width, patch = architecture.vision_width, architecture.patch_size
        assert patch is not None
        self.conv1: nn.Module
        if traits.conv_stem:
            self.conv1 = conv_stem(width, patch)
        else:
            self.conv1 = nn.Conv2d(3, width, patch, stride=patch, bias=traits.patch_bias)
        self.class_embedding = nn.Parameter(torch.empty(width)) if traits.class_token else None
        self.class_position = traits.class_position
        positions = architecture.grid**2 + (traits.class_token and traits.class_position)
        self.positional_embedding = nn.Parameter(torch.empty(positions, width))
        self.registers = nn.Parameter(torch.empty(architecture.registers, width)) if architecture.registers else None
        self.ln_pre = nn.LayerNorm(width, eps=architecture.vision_eps) if traits.pre_norm else nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, S, S) to tokens (B, P + N, W), the P class and register tokens first."""
        tokens = self.conv1(pixels).flatten(2).transpose(1, 2)
        # Not len(): a tracer records it as a constant, and the graph would accept no other batch size.
        batch = tokens.shape[0]
        if not self.class_position:
            tokens = tokens + self.positional_embedding
        if self.class_embedding is not None:
            tokens = torch.cat([self.class_embedding.expand(batch, 1, -1), tokens], dim=1)
        if self.class_position:
            tokens = tokens + self.positional_embedding
        if self.registers is not None:
            tokens = torch.cat([tokens[:, :1], self.registers.expand(batch, -1, -1), tokens[:, 1:]], dim=1)
        normalised: Tensor = self.ln_pre(tokens)
        return normalised


class VitHead(ImageHead):
    """The last norm and the projection, applied to every token.

    Args:
        architecture: Sizes of a ViT whose class token is its image embedding.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        traits = TRAITS[architecture.family]
        width = architecture.vision_width
        self.prefix = prefix_tokens(architecture)
        self.ln_post = nn.LayerNorm(width, eps=architecture.vision_eps)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim)) if traits.projection else None
        self.proj_bias = nn.Parameter(torch.empty(architecture.embed_dim)) if traits.projection_bias else None

    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W) of tokens (B, P + HW, W): the patch tokens, normalised and projected."""
        return as_map(self._project(deep[:, self.prefix :]))

    def pooled(self, deep: Tensor) -> Tensor:
        """Return the image embedding (B, D) of tokens (B, P + HW, W): the class token, normalised and projected."""
        return self._project(deep[:, 0])

    def _project(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.ln_post(tokens)
        if self.proj is not None:
            x = x @ self.proj
        return x if self.proj_bias is None else x + self.proj_bias


def conv_stem(width: int, patch: int) -> nn.Sequential:
    """Build patches with three non-overlapping convolutions, GELU between them (MobileCLIP, CVPR 2024, section 4).

    Raises:
        CheckpointError: The patch size is not a multiple of 4.
    """
    if patch % 4:
        raise CheckpointError(f"a stem of three convolutions cannot make patches of {patch} pixels")
    narrow = width // 4
    return nn.Sequential(
        OrderedDict(
            [
                ("0", nn.Conv2d(3, narrow, patch // 4, patch // 4)),
                ("gelu0", nn.GELU()),
                ("1", nn.Conv2d(narrow, narrow, 2, 2)),
                ("gelu1", nn.GELU()),
                ("2", nn.Conv2d(narrow, width, 2, 2)),
            ]
        )
    )


def as_map(patches: Tensor) -> Tensor:
    """Reshape patch tokens (B, HW, C) of a square image to a map (B, C, H, W)."""
    side = math.isqrt(patches.shape[1])
    return torch.unflatten(patches.transpose(1, 2), 2, (side, side))


def prefix_tokens(architecture: Architecture) -> int:
    """Return the number P of tokens before the patches."""
    return TRAITS[architecture.family].class_token + architecture.registers
