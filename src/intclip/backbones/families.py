"""Properties of each family of towers, as a table; the parts are in modules such as `vit` and `clip_text`.

CLIP: Radford et al., 2021; also LAION's, DataComp's, DFN's and MetaCLIP's weights. MetaCLIP 2: Chuang et al., 2025.
SigLIP: Zhai et al., 2023; SigLIP 2 (fixed size): Tschannen et al., 2025. EVA-02-CLIP: Fang et al.; Sun et al., 2023.
Perception Encoder: Bolya et al., 2025. TIPS v2: Maninis et al., 2025, in the version of 2026. MobileCLIP 2: Faghri et
al., 2025; S0 and S2 have a FastViT (`fastvit`), B a ViT.
"""

from dataclasses import dataclass
from typing import Literal

from intclip.backbones.architecture import Activation, Family
from intclip.backbones.preprocess import Preprocess

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Pixels:
    """Default preprocessing of a family: the fields of `Preprocess` without the size."""

    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Literal["center", "squash"] = "center"

    def at(self, size: int) -> Preprocess:
        """Return the preprocessing for this side in pixels."""
        return Preprocess(size=size, mean=self.mean, std=self.std, interpolation=self.interpolation, crop=self.crop)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of patches.

    Attributes:
        reference: Number of patches per side that positions are scaled to; None for no scaling.
        offset: Position of the first patch.
        order: Coordinate that rotates the first half of the channels: rows in "yx", columns in "xy".
    """

    reference: int | None
    offset: float
    order: Literal["yx", "xy"]


@dataclass(frozen=True)
class Traits:
    """Components of a family's towers.

    Attributes:
        title: Display name.
        pixels: Default preprocessing.
        patch_bias: The patch convolution has a bias.
        conv_stem: The patch embedding is three convolutions with GELU between them.
        class_token: There is a class token before the patches.
        class_position: The class token has a position.
        pre_norm: There is a norm before the first block.
        pooling: The image embedding is the class token, or the output of a learned query ("map").
        projection: Pooled features are projected to the joint space.
        projection_bias: The projection has a bias.
        rotary: Rotary positions.
        layer_scale: See `BlockSpec`.
        gated: See `BlockSpec`.
        inner_norm: See `BlockSpec`.
        pool_heads: Heads of the learned query; None means as many as the blocks have.
        text: Text tower. "causal": CLIP's, read at the end token. "open": the same without the causal mask, always
            padded. "padded": SigLIP's, read at the last position. "mean": TIPS's.
        own_tokens: Tokens are CLIP's; otherwise a `tokenizer.json` beside the weights gives them.
        activation: Default of the image tower.
        text_activation: Default of the text tower.
        vision_eps: Default epsilon of the image tower's layer norms.
        text_eps: Default epsilon of the text tower's layer norms.
    """

    title: str
    pixels: Pixels = Pixels()
    patch_bias: bool = False
    conv_stem: bool = False
    class_token: bool = True
    class_position: bool = True
    pre_norm: bool = True
    pooling: Literal["class", "map"] = "class"
    projection: bool = True
    projection_bias: bool = False
    rotary: Rotary | None = None
    layer_scale: bool = False
    gated: bool = False
    inner_norm: bool = False
    pool_heads: int | None = None
    text: Literal["causal", "open", "padded", "mean"] = "causal"
    own_tokens: bool = True
    activation: Activation = "quick_gelu"
    text_activation: Activation | None = None
    vision_eps: float = 1e-5
    text_eps: float = 1e-5


_HALF = (0.5, 0.5, 0.5)
_ZERO, _ONE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
_MOBILE = Pixels(_ZERO, _ONE, "bilinear")

TRAITS: dict[Family, Traits] = {
    "clip": Traits("CLIP"),
    "metaclip2": Traits("MetaCLIP 2", own_tokens=False),
    "siglip": Traits(
        "SigLIP",
        Pixels(_HALF, _HALF, crop="squash"),
        patch_bias=True,
        class_token=False,
        pre_norm=False,
        pooling="map",
        projection=False,
        text="padded",
        own_tokens=False,
        activation="gelu_tanh",
        vision_eps=1e-6,
        text_eps=1e-6,
    ),
    "eva02": Traits(
        "EVA-02-CLIP",
        patch_bias=True,
        pre_norm=False,
        projection_bias=True,
        rotary=Rotary(16, 0, "yx"),
        gated=True,
        inner_norm=True,
        activation="gelu",
        vision_eps=1e-6,
    ),
    "pe": Traits(
        "Perception Encoder",
        Pixels(_HALF, _HALF, "bilinear", "squash"),
        pooling="map",
        rotary=Rotary(None, 1, "xy"),
        pool_heads=8,
        activation="gelu",
    ),
    "tipsv2": Traits(
        "TIPS v2",
        Pixels(_ZERO, _ONE, "bilinear", "squash"),
        patch_bias=True,
        pre_norm=False,
        projection=False,
        layer_scale=True,
        text="mean",
        own_tokens=False,
        activation="gelu",
        text_activation="relu",
        vision_eps=1e-6,
    ),
    "mobileclip": Traits("MobileCLIP 2 S", _MOBILE, text="open", activation="gelu", vision_eps=1e-6),
    "mobileclip_vit": Traits(
        "MobileCLIP 2 B",
        _MOBILE,
        conv_stem=True,
        class_position=False,
        pre_norm=False,
        projection_bias=True,
        activation="gelu",
        vision_eps=1e-6,
    ),
}
