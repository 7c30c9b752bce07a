"""CLIP and its successors as one backbone: an image tower, a text transformer, and a joint space."""

import math
from collections import Counter
from dataclasses import asdict

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture, Split
from intclip.backbones.base import Backbone, TextTower
from intclip.backbones.clip_resnet import STAGES, build_resnet
from intclip.backbones.clip_text import ClipText, OpenClipText
from intclip.backbones.clip_vit import as_map, prefix_tokens
from intclip.backbones.families import OPENAI_MEAN, OPENAI_STD, TRAITS
from intclip.backbones.fastvit import ConvUnit, build_fastvit
from intclip.backbones.file_tokenizer import StandInTokenizer, TextTokenizer
from intclip.backbones.padded_text import MeanText, PaddedText
from intclip.backbones.transformer import LayerScale
from intclip.backbones.vit import build_vit
from intclip.errors import CheckpointError

MEAN, STD = OPENAI_MEAN, OPENAI_STD


class ClipBackbone(Backbone):
    """CLIP (Radford et al., 2021) or another family of `families`, split as IntCLIP needs it.

    | image tower | split      | trunk                     | deep                  |
    |-------------|------------|---------------------------|-----------------------|
    | ResNet      | "paper"    | stem, layer1–3            | layer4                |
    | ResNet      | "released" | stem, layer1–2            | layer3–4              |
    | FastViT     |            | as a ResNet               | … and the last convolution |
    | ViT         | either     | embedding, 3/4 of blocks  | last quarter of blocks |

    The released code of IntCLIP has no ViT, so for a ViT both splits are the paper's.

    Args:
        architecture: Sizes; weights are loaded later.
        split: See the table.
        name: Registry name; default: a description of the architecture.
        tokenizer: For a family that does not use CLIP's tokens; without one the text tower accepts only token ids.

    Attributes:
        architecture: Sizes.
        split: Where the trunk ends.
        logit_scale: The learned scale of cosines, as its logarithm; scalar.
        logit_bias: SigLIP's bias on scaled cosines before its sigmoid; scalar, None for other families.
    """

    trunk: nn.Sequential
    deep: nn.Sequential

    def __init__(
        self,
        architecture: Architecture,
        split: Split = "paper",
        name: str | None = None,
        tokenizer: TextTokenizer | None = None,
    ) -> None:
        super().__init__()
        self.name = name or architecture.label
        self.architecture = architecture
        self.split: Split = split
        self.regions = architecture.regions
        if self.regions != "tokens" and (
            architecture.patch_size is None or TRAITS[architecture.family].pooling == "map"
        ):
            raise CheckpointError(
                f"{self.name} has one kind of region features; regions={self.regions!r} is for a ViT whose image"
                " embedding is its class token: CLIP's, MetaCLIP 2, EVA-02, MobileCLIP 2 B, TIPS v2"
            )
        self.embed_dim = architecture.embed_dim
        self.grid = (architecture.grid, architecture.grid)
        self.preprocess = TRAITS[architecture.family].pixels.at(architecture.image_size)
        if architecture.family == "mobileclip":
            self.trunk, self.deep, self.head = build_fastvit(architecture, split)
        elif architecture.patch_size is None:
            self.trunk, self.deep, self.head = build_resnet(architecture, split)
        else:
            self.trunk, self.deep, self.head = build_vit(architecture)
        texts: dict[str, type[ClipText | PaddedText | MeanText]] = {
            "causal": ClipText,
            "open": OpenClipText,
            "padded": PaddedText,
            "mean": MeanText,
        }
        self.text: TextTower = texts[TRAITS[architecture.family].text](architecture, tokenizer)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.logit_bias = nn.Parameter(torch.empty(())) if architecture.family == "siglip" else None

    def logit_sigmoid(self) -> tuple[float, float] | None:
        """Return SigLIP's scale e^s and bias; None for other families."""
        if self.logit_bias is None:
            return None
        return math.exp(float(self.logit_scale)), float(self.logit_bias)

    def design(self) -> dict[str, object]:
        """Return the architecture, field by field, without the default `regions`."""
        return {key: value for key, value in asdict(self.architecture).items() if (key, value) != ("regions", "tokens")}

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return four maps (B, C_i, H_i, W_i): the stages, or a ViT's patches after each quarter of its blocks."""
        return self.run_stages(pixels)[2]

    def run_stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute trunk features, last feature map and four stage maps of pixels (B, 3, S, S) in one pass."""
        ends = self._stage_ends()
        stages: list[Tensor] = []
        x = pixels
        for name, part in self.trunk.named_children():
            x = part(x)
            stages += [self.deep_map(x)] * ends[name]
        trunk = x
        for name, part in self.deep.named_children():
            x = part(x)
            stages += [self.deep_map(x)] * ends[name]
        return trunk, x, stages

    def _stage_ends(self) -> Counter[str]:
        """Number of stages that end after each part; in a ViT of fewer than four blocks, several end after one."""
        layers = self.architecture.vision_layers
        if isinstance(layers, tuple):
            return Counter([*STAGES[:-1], [name for name, _ in self.deep.named_children()][-1]])
        return Counter(f"block{math.ceil(layers * quarter / 4) - 1}" for quarter in (1, 2, 3, 4))

    def deep_map(self, deep: Tensor) -> Tensor:
        """Return the last feature map (B, C, H, W) of a ResNet or FastViT, or a ViT's patch tokens as a map."""
        if self.architecture.patch_size is None:
            return deep
        return as_map(deep[:, prefix_tokens(self.architecture) :])


def random_clip(
    architecture: Architecture, *, seed: int = 0, split: Split = "paper", name: str | None = None
) -> ClipBackbone:
    """Build a backbone with seeded random weights that keep activations at normal scale, for tests and benchmarks.

    Args:
        architecture: Any sizes.
        seed: Same seed, same weights.
        split: See `ClipBackbone`.
        name: See `ClipBackbone`.
    """
    with torch.device("meta"):
        backbone = ClipBackbone(architecture, split, name, _stand_in(architecture))
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, parameter in backbone.named_parameters():
        spread = math.prod(parameter.shape[1:]) ** -0.5 if parameter.ndim > 1 else 0.02
        state[key] = torch.empty(parameter.shape, device="cpu").normal_(0, spread, generator=generator)
    for name_, module in backbone.named_modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | LayerScale):
            state[f"{name_}.weight"] += 1
        if isinstance(module, ConvUnit):  # no norm restores the scale
            state[f"{name_}.weight"] /= module.damping
        if isinstance(module, nn.BatchNorm2d):
            channels = module.num_features
            state[f"{name_}.running_mean"], state[f"{name_}.running_var"] = torch.zeros(channels), torch.ones(channels)
            state[f"{name_}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    state["logit_scale"].fill_(math.log(100))
    if "logit_bias" in state:
        state["logit_bias"].fill_(-10)
    backbone.load_state_dict(state, strict=True, assign=True)
    backbone.freeze()
    return backbone


def _stand_in(architecture: Architecture) -> StandInTokenizer | None:
    """Tokenizer for random weights of a family whose own tokenizer comes with real weights."""
    traits = TRAITS[architecture.family]
    if traits.own_tokens:
        return None
    if traits.text == "causal":
        return StandInTokenizer(architecture.vocab_size, start=0, end=architecture.end_token or 2, pad_id=1)
    return StandInTokenizer(architecture.vocab_size, start=None, end=1 if traits.text == "padded" else None, pad_id=0)
