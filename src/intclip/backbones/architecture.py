"""Architectures of the named models and of any other state dict."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from intclip.errors import CheckpointError

Activation = Literal["quick_gelu", "gelu", "gelu_tanh", "relu"]
"""OpenAI's models use QuickGELU, most open_clip (LAION) models the exact GELU; it cannot be inferred from weights."""
Family = Literal["clip", "metaclip2", "siglip", "eva02", "pe", "tipsv2", "mobileclip", "mobileclip_vit"]
"""Family of towers; see `families`."""
Regions = Literal["tokens", "values", "clear"]
"""Region features of a ViT's patches; see `region_block`."""
Split = Literal["paper", "released"]
"""Where the trunk ends and the deep layers begin; see `ClipBackbone`."""
ResNetLayers = tuple[int, int, int, int]
HEAD_WIDTH = 64
"""Channels per attention head in OpenAI's models."""


@dataclass(frozen=True)
class Architecture:
    """Sizes of an image tower and a text tower with a joint space.

    Attributes:
        embed_dim: Size D of the joint space.
        image_size: Side of the square input, in pixels.
        vision_layers: Blocks of each of the four stages of a ResNet or FastViT, or the number of a ViT's blocks.
        vision_width: Channels of a ResNet's or FastViT's stem, or of a ViT's tokens.
        patch_size: Side of a ViT's patch, in pixels; None for a ResNet or FastViT, whose stride is 32.
        text_width: Channels of a text token.
        text_layers: Blocks of the text transformer.
        context_length: The largest number of text tokens.
        vocab_size: Number of token ids.
        vision_heads: Attention heads of a ViT; None means width / 64, as in OpenAI's models.
        text_heads: Attention heads of the text transformer; None means width / 64.
        vision_mlp: Hidden size of a ViT's MLP; None means 4 · width.
        text_mlp: Hidden size of the text transformer's MLP; None means 4 · width.
        activation: Activation of the MLPs.
        text_activation: Activation of the text transformer's MLPs; None means `activation`.
        vision_eps: Epsilon of a ViT's layer norms.
        text_eps: Epsilon of the text transformer's layer norms.
        end_token: Id of the token at which a text is read; None means its highest id, as in OpenAI's models.
        registers: Tokens of a ViT between the class token and the patches.
        family: The family.
        regions: Region features of a ViT's patches; see `region_block`.
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
    text_activation: Activation | None = None
    vision_eps: float = 1e-5
    text_eps: float = 1e-5
    end_token: int | None = None
    registers: int = 0
    family: Family = "clip"
    regions: Regions = "tokens"

    @property
    def grid(self) -> int:
        """Side of the square region map."""
        return self.image_size // (self.patch_size or 32)

    @property
    def label(self) -> str:
        """Return the registry name of this architecture, or a description."""
        names = [name for name, known in ARCHITECTURES.items() if self.same_sizes(known)]
        if names:
            return names[0]
        convolutions = "FastViT" if self.family == "mobileclip" else "ResNet"
        kind = convolutions if self.patch_size is None else f"ViT/{self.patch_size}"
        layers = self.vision_layers if isinstance(self.vision_layers, int) else "-".join(map(str, self.vision_layers))
        family = "" if self.family == "clip" else f"{self.family} "
        return f"{family}{kind} {layers}×{self.vision_width} at {self.image_size}px, D {self.embed_dim}"

    def same_sizes(self, other: "Architecture") -> bool:
        """Return whether everything determined by the weights' shapes is equal, except pixels outside patches."""
        unseen = {name: getattr(self, name) for name in ("image_size", *UNSEEN)}
        return self.grid == other.grid and replace(other, **unseen) == self

    def with_details(self, details: Mapping[str, Any]) -> "Architecture":
        """Replace `UNSEEN` fields; usual numbers of heads and activations become None."""
        told = replace(self, **details)
        vision, text = (
            None if heads == width // HEAD_WIDTH else heads
            for heads, width in ((told.vision_heads, told.vision_width), (told.text_heads, told.text_width))
        )
        same = told.text_activation == told.activation
        return replace(
            told, vision_heads=vision, text_heads=text, text_activation=None if same else told.text_activation
        )


UNSEEN = (
    "vision_heads", "text_heads", "activation", "text_activation", "vision_eps", "text_eps", "end_token", "regions",
)  # fmt: skip
"""Fields of an architecture that cannot be inferred from the shapes of its weights."""


def _resnet(layers: ResNetLayers, width: int, size: int, embed_dim: int, text_width: int) -> Architecture:
    return Architecture(embed_dim, size, layers, width, None, text_width)


def _vit(layers: int, width: int, patch: int, size: int, embed_dim: int, text_width: int) -> Architecture:
    return Architecture(embed_dim, size, layers, width, patch, text_width)


def _siglip(layers: int, width: int, patch: int, size: int, vocab: int, mlp: int | None = None) -> Architecture:
    """SigLIP: both towers have the same width; SO400M has heads of 72 channels."""
    heads = 16 if width == 1152 else None
    return Architecture(
        width, size, layers, width, patch, width, 27 if width == 1152 else layers, 64, vocab, heads, heads, mlp, mlp,
        "gelu_tanh", vision_eps=1e-6, text_eps=1e-6, family="siglip",
    )  # fmt: skip


_SIGLIP, _SIGLIP2 = 32_000, 256_000
_H14 = Architecture(1024, 224, 32, 1280, 14, 1024, 24, vision_heads=16, activation="gelu")
_PE: dict[str, Any] = {"text_layers": 24, "context_length": 32, "activation": "gelu", "family": "pe"}
_EVA: dict[str, Any] = {"activation": "gelu", "vision_eps": 1e-6, "family": "eva02"}
_MOBILE: dict[str, Any] = {"activation": "gelu", "vision_eps": 1e-6}

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
    "ViT-H/14": _H14,
    "MetaCLIP2-H/14": replace(
        _H14, vocab_size=901_629, activation="quick_gelu", end_token=2, family="metaclip2"
    ),
    "SigLIP-B/16": _siglip(12, 768, 16, 224, _SIGLIP),
    "SigLIP-L/16@256px": _siglip(24, 1024, 16, 256, _SIGLIP),
    "SigLIP-SO400M/14@384px": _siglip(27, 1152, 14, 384, _SIGLIP, 4304),
    "SigLIP2-B/32@256px": _siglip(12, 768, 32, 256, _SIGLIP2),
    "SigLIP2-B/16": _siglip(12, 768, 16, 224, _SIGLIP2),
    "SigLIP2-L/16@256px": _siglip(24, 1024, 16, 256, _SIGLIP2),
    "SigLIP2-SO400M/14": _siglip(27, 1152, 14, 224, _SIGLIP2, 4304),
    "EVA02-B/16": Architecture(512, 224, 12, 768, 16, 512, vision_mlp=2048, **_EVA),
    "EVA02-L/14": Architecture(768, 224, 24, 1024, 14, 768, vision_mlp=2730, **_EVA),
    "PE-B/16": Architecture(1024, 224, 12, 768, 16, 1024, **_PE),
    "PE-L/14@336px": Architecture(1024, 336, 24, 1024, 14, 1024, **_PE),
    "MobileCLIP2-S0": Architecture(512, 256, (2, 6, 10, 2), 64, None, 512, family="mobileclip", **_MOBILE),
    "MobileCLIP2-S2": Architecture(512, 256, (4, 12, 24, 4), 80, None, 512, family="mobileclip", **_MOBILE),
    "MobileCLIP2-B": Architecture(512, 224, 12, 768, 16, 512, family="mobileclip_vit", **_MOBILE),
    "TIPSv2-B/14": Architecture(
        768, 448, 12, 768, 14, 768, 12, 64, _SIGLIP,
        activation="gelu", text_activation="relu", vision_eps=1e-6, registers=1, family="tipsv2",
    ),
}  # fmt: skip
"""Published architectures: OpenAI's (Radford et al., 2021, Tables 19 and 20), then those of other families."""


def infer_architecture(state: Mapping[str, Tensor]) -> Architecture:
    """Infer the architecture of a state dict with OpenAI's key names (`layouts`) from keys and shapes.

    Raises:
        CheckpointError: A required key is missing, or sizes are inconsistent.
    """
    shape = _Shapes(state)
    text_width = shape("ln_final.weight")[0]
    family = _infer_family(state)
    is_vit = family != "mobileclip" and (family != "clip" or "visual.proj" in state)
    image_size, width, patch = _image_sizes(shape, family, is_vit=is_vit)
    layers: int | ResNetLayers
    if is_vit:
        layers = _count(state, r"visual\.transformer\.resblocks\.(\d+)\.")
    else:
        one, two, three, four = (_count(state, rf"visual\.layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4))
        layers = (one, two, three, four)
    vision_mlp = shape("visual.transformer.resblocks.0.mlp.c_fc.weight")[0] if is_vit else None
    text_mlp = shape("transformer.resblocks.0.mlp.c_fc.weight")[0]
    return Architecture(
        embed_dim=text_width if family == "tipsv2" else shape("text_projection")[1],
        image_size=image_size,
        vision_layers=layers,
        vision_width=width,
        patch_size=patch,
        text_width=text_width,
        text_layers=_count(state, r"transformer\.resblocks\.(\d+)\."),
        # TIPS computes its positions, so their number is not in the weights.
        context_length=64 if family == "tipsv2" else shape("positional_embedding")[0],
        vocab_size=shape("token_embedding.weight")[0],
        vision_mlp=None if vision_mlp == 4 * width else vision_mlp,
        text_mlp=None if text_mlp == 4 * text_width else text_mlp,
        registers=len(state["visual.registers"]) if "visual.registers" in state else 0,
        family=family,
    )


def _image_sizes(shape: "_Shapes", family: Family, *, is_vit: bool) -> tuple[int, int, int | None]:
    """Side of the photo, width and patch size of an image tower.

    Raises:
        CheckpointError: Its positions are not those of a square.
    """
    if family == "mobileclip":  # no positions: weights fit any side; a configuration has it
        return ARCHITECTURES["MobileCLIP2-S0"].image_size, shape("visual.stem.0.weight")[0], None
    patch = width = None
    if family == "mobileclip_vit":
        patches = [shape(f"visual.conv1.{place}.weight") for place in (0, 1, 2)]
        patch, width = math.prod(weight[-1] for weight in patches), patches[-1][0]
    elif is_vit:
        width, *_, patch = shape("visual.conv1.weight")
    else:
        width = shape("visual.layer1.0.conv1.weight")[0]
    positions = shape("visual.positional_embedding" if is_vit else "visual.attnpool.positional_embedding")[0]
    count = positions if family in ("siglip", "mobileclip_vit") else positions - 1
    grid = math.isqrt(count)
    if grid * grid != count:
        raise CheckpointError(f"the checkpoint has {positions} image positions, which are not those of a square photo")
    return grid * (patch or 32), width, patch


def _infer_family(state: Mapping[str, Tensor]) -> Family:
    """MetaCLIP 2 has CLIP's keys; only its configuration shows which it is."""
    if any(key.startswith("visual.stem.") for key in state):
        return "mobileclip"
    if any(re.match(r"visual\.conv1\.\d", key) for key in state):
        return "mobileclip_vit"
    if "visual.attn_pool.probe" in state:
        return "siglip" if "text_projection_bias" in state else "pe"
    if "visual.transformer.resblocks.0.mlp.gate.weight" in state:
        return "eva02"
    return "tipsv2" if "visual.transformer.resblocks.0.ls_1.weight" in state else "clip"


class _Shapes:
    """Looks up shapes by key; the error names a missing key."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = state

    def __call__(self, key: str) -> tuple[int, ...]:
        if key not in self.state:
            raise CheckpointError(f"the checkpoint has no complete image and text tower: {key} is missing")
        return tuple(self.state[key].shape)


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that the pattern's group takes at the start of a key."""
    matches = (re.match(pattern, key) for key in state)
    return max((int(match[1]) + 1 for match in matches if match), default=0)
