"""FastViT as MobileCLIP has it, in its form for inference: convolutions without branches and batch norms.

FastViT: Vasu et al., ICCV 2023; the variants "mci": Vasu et al., MobileCLIP, CVPR 2024, and Faghri et al.,
MobileCLIP 2, TMLR 2025. `fastvit_fusion` makes this form from the branches and norms that are trained.
"""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture, Split
from intclip.backbones.base import ImageHead
from intclip.backbones.clip_resnet import STAGES, TRUNK_STAGES
from intclip.backbones.transformer import Attention
from intclip.errors import CheckpointError

HEAD_CHANNELS = 32
MLP_RATIO = 3
LARGE_KERNEL = 7
EXCITED = (False, False, True, True)
"""Stages whose downsampling has squeeze and excitation."""
STAGE_SQUEEZE, FINAL_SQUEEZE = 4, 16
"""How many times fewer channels the squeeze has."""


class SqueezeExcite(nn.Module):
    """Each channel times a factor in (0, 1) that depends on the means of all (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scale: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return x * scale


class ConvUnit(nn.Conv2d):
    """A convolution with a rim of half its kernel, then squeeze and excitation, then GELU, where it has them.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the kernel.
        stride: Of the convolution.
        groups: Of the convolution.
        squeeze: How many times fewer channels the squeeze has; 0 for none.
        activate: GELU behind it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        squeeze: int = 0,
        activate: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        self.se = SqueezeExcite(outputs, outputs // squeeze) if squeeze else nn.Identity()
        self.act = nn.GELU() if activate else nn.Identity()

    @property
    def damping(self) -> float:
        """About how much smaller than behind the convolution values are behind GELU and excitation."""
        return (1 if isinstance(self.act, nn.Identity) else 0.65) * (1 if isinstance(self.se, nn.Identity) else 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        out: Tensor = self.act(self.se(super().forward(x)))
        return out


def conv_mlp(channels: int) -> nn.Sequential:
    """A wide depthwise convolution, then an MLP at each position."""
    hidden = MLP_RATIO * channels
    return nn.Sequential(
        OrderedDict(
            conv=ConvUnit(channels, channels, LARGE_KERNEL, groups=channels),
            fc1=ConvUnit(channels, hidden, 1, activate=True),
            fc2=ConvUnit(hidden, channels, 1),
        )
    )


class MixerBlock(nn.Module):
    """Positions mixed by a depthwise convolution (RepMixer), then an MLP beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mixer = ConvUnit(channels, channels, 3, groups=channels)
        self.mlp = conv_mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        x = self.mixer(x)
        out: Tensor = x + self.mlp(x)
        return out


class AttentionBlock(nn.Module):
    """Attention among all positions and an MLP, each beside an identity.

    Raises:
        CheckpointError: Heads of 32 channels do not divide the channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels % HEAD_CHANNELS:
            raise CheckpointError(f"FastViT's last stage of {channels} channels cannot have heads of {HEAD_CHANNELS}")
        self.attn = Attention(channels, channels // HEAD_CHANNELS)
        self.mlp = conv_mlp(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        mixed = self.attn(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        x = x + mixed.unflatten(2, x.shape[-2:])
        out: Tensor = x + self.mlp(x)
        return out


class LinearHead(ImageHead):
    """One linear layer at each position, whose mean over them is the image embedding.

    Args:
        channels: C of the last map.
        embed_dim: Size D of the joint space.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, embed_dim)

    def regions(self, deep: Tensor) -> Tensor:
        """Region features (B, D, H, W) of the last map (B, C, H, W)."""
        return F.conv2d(deep, self.fc.weight[:, :, None, None], self.fc.bias)

    def pooled(self, deep: Tensor) -> Tensor:
        """Image embedding (B, D) of the last map (B, C, H, W): the mean of the regions, by way of the mean position."""
        embedding: Tensor = self.fc(deep.mean(dim=(2, 3)))
        return embedding


def build_fastvit(architecture: Architecture, split: Split) -> tuple[nn.Sequential, nn.Sequential, LinearHead]:
    """Trunk, deep layers and head of a FastViT, with weights yet to be loaded.

    Args:
        architecture: Of a FastViT.
        split: "paper": deep is the last stage with its attention, and the last convolution; "released": the last two
            stages, as for a ResNet.
    """
    if not isinstance(architecture.vision_layers, tuple):
        raise ValueError("a FastViT has four stages")
    width = architecture.vision_width
    stem = nn.Sequential(
        ConvUnit(3, width, 3, stride=2, activate=True),
        ConvUnit(width, width, 3, stride=2, groups=width, activate=True),
        ConvUnit(width, width, 1, activate=True),
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    for index, (stage, depth) in enumerate(zip(STAGES, architecture.vision_layers, strict=True)):
        channels = width * 2**index
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if index:
            layers["downsample"] = _downsample(channels // 2, squeeze=STAGE_SQUEEZE if EXCITED[index] else 0)
        last = stage == STAGES[-1]
        if last:
            layers["position"] = ConvUnit(channels, channels, LARGE_KERNEL, groups=channels)
        layers |= {str(i): AttentionBlock(channels) if last else MixerBlock(channels) for i in range(depth)}
        parts[stage] = nn.Sequential(layers)
    parts["final"] = ConvUnit(channels, 2 * channels, 3, groups=channels, squeeze=FINAL_SQUEEZE, activate=True)
    in_trunk = ("stem", *STAGES[: TRUNK_STAGES[split]])
    trunk, deep = (
        nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if (name in in_trunk) is shallow))
        for shallow in (True, False)
    )
    return trunk, deep, LinearHead(2 * channels, architecture.embed_dim)


def _downsample(channels: int, *, squeeze: int) -> nn.Sequential:
    """Half the side, twice the channels."""
    return nn.Sequential(
        ConvUnit(channels, 2 * channels, LARGE_KERNEL, stride=2, groups=channels, squeeze=squeeze, activate=True),
        ConvUnit(2 * channels, 2 * channels, 1, activate=True),
    )
