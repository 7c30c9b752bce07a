"""What a CLIP is built of, for the named models and for any other state dict."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from intclip.errors import CheckpointError

Activation = Literal["quick_gelu", "gelu"]
"""OpenAI's models use QuickGELU, most open_clip (LAION) models the exact GELU; the weights do not tell."""
Split = Literal["paper", "released"]
"""Where the trunk ends and the deep layers begin; see `ClipBackbone`."""
ResNetLayers = tuple[int, int, int, int]
HEAD_WIDTH = 64
"""Channels of an attention head in all of OpenAI's models."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of a CLIP.

    Attributes:
        embed_dim: Size D of the joint space.
        image_size: Side of the square input, in pixels.
        vision_layers: Blocks of each of a ResNet's four stages, or the number of a ViT's blocks.
        vision_width: Channels of a ResNet's stem, or of a ViT's tokens.
        patch_size: Side of a ViT's patch, in pixels; None for a ResNet.
        text_width: Channels of a text token.
        text_layers: Blocks of the text transformer.
        context_length: The largest number of text tokens.
        vocab_size: Number of token ids; the highest one is the end of a text.
        vision_heads: Attention heads of a ViT; None means width / 64, as OpenAI has it.
        text_heads: Attention heads of the text transformer; None means width / 64.
        vision_mlp: Hidden size of a ViT's MLP; None means 4 · width.
        text_mlp: Hidden size of the text transformer's MLP; None means 4 · width.
        activation: Of both transformers' MLPs.
    """

    embed_dim: int
    image_size: int
    vision_layers: int | ResNetLayers
    vision_width: int
    patch_size: int | None
    text_width: int
    text_layers: int = 12
    context_length: int = 77
    vocab_size: int = 49408
    vision_heads: int | None = None
    text_heads: int | None = None
    vision_mlp: int | None = None
    text_mlp: int | None = None
    activation: Activation = "quick_gelu"

    @property
    def grid(self) -> int:
        """Side of the square region map."""
        return self.image_size // (self.patch_size or 32)

    @property
    def label(self) -> str:
        """The registry name of this architecture, or a description in words."""
        plain = replace(self, activation="quick_gelu")
        names = [name for name, known in ARCHITECTURES.items() if known == plain]
        if names:
            return names[0]
        kind = "ResNet" if self.patch_size is None else f"ViT/{self.patch_size}"
        layers = self.vision_layers if isinstance(self.vision_layers, int) else "-".join(map(str, self.vision_layers))
        return f"{kind} {layers}×{self.vision_width} at {self.image_size}px, D {self.embed_dim}"


def _resnet(layers: ResNetLayers, width: int, size: int, embed_dim: int, text_width: int) -> Architecture:
    return Architecture(embed_dim, size, layers, width, None, text_width)


def _vit(layers: int, width: int, patch: int, size: int, embed_dim: int, text_width: int) -> Architecture:
    return Architecture(embed_dim, size, layers, width, patch, text_width)


ARCHITECTURES: dict[str, Architecture] = {
    "RN50": _resnet((3, 4, 6, 3), 64, 224, 1024, 512),
    "RN101": _resnet((3, 4, 23, 3), 64, 224, 512, 512),
    "RN50x4": _resnet((4, 6, 10, 6), 80, 288, 640, 640),
    "RN50x16": _resnet((6, 8, 18, 8), 96, 384, 768, 768),
    "RN50x64": _resnet((3, 15, 36, 10), 128, 448, 1024, 1024),
    "ViT-B/32": _vit(12, 768, 32, 224, 512, 512),
    "ViT-B/16": _vit(12, 768, 16, 224, 512, 512),
    "ViT-L/14": _vit(24, 1024, 14, 224, 768, 768),
    "ViT-L/14@336px": _vit(24, 1024, 14, 336, 768, 768),
}
"""The architectures that OpenAI released weights for (Radford et al., 2021, Tables 19 and 20)."""


def infer_architecture(state: Mapping[str, Tensor]) -> Architecture:
    """The architecture behind a state dict in OpenAI's layout, told by its keys and shapes.

    Raises:
        CheckpointError: A key that tells a size is missing, or the sizes contradict each other.
    """
    shape = _Shapes(state)
    text_width = shape("ln_final.weight")[0]
    is_vit = "visual.proj" in state
    patch = shape("visual.conv1.weight")[-1] if is_vit else None
    positions = shape("visual.positional_embedding" if is_vit else "visual.attnpool.positional_embedding")[0] - 1
    grid = math.isqrt(positions)
    if grid * grid != positions:
        raise CheckpointError(f"the checkpoint has {positions} image positions, no square number; is it a CLIP?")
    layers: int | ResNetLayers
    if is_vit:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
        width = shape("visual.conv1.weight")[0]
    else:
        one, two, three, four = (_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        layers = (one, two, three, four)
        width = shape("visual.layer1.0.conv1.weight")[0]
    vision_mlp = shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] if is_vit else None
    text_mlp = shape("transformer.resblocks.0.mlp.c_fc.weight")[0]
    return Architecture(
        embed_dim=shape("text_projection")[1],
        image_size=grid * (patch or 32),
        vision_layers=layers,
        vision_width=width,
        patch_size=patch,
        text_width=text_width,
        text_layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
        context_length=shape("positional_embedding")[0],
        vocab_size=shape("token_embedding.weight")[0],
        vision_mlp=None if vision_mlp == 4 * width else vision_mlp,
        text_mlp=None if text_mlp == 4 * text_width else text_mlp,
    )


def with_heads(architecture: Architecture, vision_heads: int | None, text_heads: int | None) -> Architecture:
    """The same architecture with these numbers of attention heads; None, or OpenAI's number, means width / 64."""
    usual = (architecture.vision_width // HEAD_WIDTH, architecture.text_width // HEAD_WIDTH)
    vision, text = (
        None if heads == openai else heads for heads, openai in zip((vision_heads, text_heads), usual, strict=True)
    )
    return replace(architecture, vision_heads=vision, text_heads=text)


class _Shapes:
    """Looks up shapes by key, and names the key that is missing."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def __call__(self, key: str) -> tuple[int, ...]:
        if key not in self.state:
            raise CheckpointError(f"the checkpoint is no whole CLIP (image and text tower): {key} is missing")
        return tuple(self.state[key].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that the pattern's group takes at the start of a key."""
    matches = (re.match(pattern, key) for key in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
