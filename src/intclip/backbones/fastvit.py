"""MobileCLIP's FastViT in its inference form: convolutions without branches and batch norms.

FastViT: Vasu et al., ICCV 2023; the variants "mci": Vasu et al., MobileCLIP, CVPR 2024, and Faghri et al.,
MobileCLIP 2, TMLR 2025. `fastvit_fusion` converts the training form, with branches and norms, to this one.
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
"""Whether the downsampling before each stage has squeeze and excitation."""
STAGE_SQUEEZE, FINAL_SQUEEZE = 4, 16
"""Reduction factors of the squeeze's channels."""


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a factor in (0, 1) that depends on all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        scale: Tensor = self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return x * scale


class ConvUnit(nn.Conv2d):
    """A convolution padded by half its kernel, then optional squeeze and excitation, then optional GELU.

    Args:
        inputs: Input channels.
        outputs: Output channels.
        kernel: Side of the kernel.
        stride: Stride of the convolution.
        groups: Groups of the convolution.
        squeeze: Reduction factor of the squeeze's channels; 0 for no squeeze.
        activate: Apply GELU last.
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
        """Return the approximate factor by which GELU and excitation shrink values."""
        return (1 if isinstance(self.act, nn.Identity) else 0.65) * (1 if isinstance(self.se, nn.Identity) else 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        out: Tensor = self.act(self.se(super().forward(x)))
        return out


def conv_mlp(channels: int) -> nn.Sequential:
    """Build a wide depthwise convolution followed by an MLP at each position."""
    hidden = MLP_RATIO * channels
    return nn.Sequential(
        OrderedDict(
            conv=ConvUnit(channels, channels, LARGE_KERNEL, groups=channels),
            fc1=ConvUnit(channels, hidden, 1, activate=True),
            fc2=ConvUnit(hidden, channels, 1),
        )
    )


class MixerBlock(nn.Module):
    """Mixes positions by a depthwise convolution (RepMixer), then applies a residual MLP."""

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
    """Residual attention over all positions, then a residual MLP.

    Raises:
        CheckpointError: The channels are not a multiple of 32, the channels of a head.
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
    """One linear layer at each position; the mean over positions is the image embedding.

    Args:
        channels: C of the last map.
        embed_dim: Size D of the joint space.
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, embed_dim)

    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W) of the last map (B, C, H, W)."""
        return F.conv2d(deep, self.fc.weight[:, :, None, None], self.fc.bias)

    def pooled(self, deep: Tensor) -> Tensor:
        """Return the image embedding (B, D) of the last map (B, C, H, W), which is the mean of the region features."""
        embedding: Tensor = self.fc(deep.mean(dim=(2, 3)))
        return embedding


def build_fastvit(architecture: Architecture, split: Split) -> tuple[nn.Sequential, nn.Sequential, LinearHead]:
    """Build trunk, deep layers and head of a FastViT; weights are loaded later.

    Args:
        architecture: Sizes of a FastViT.
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
    """Build layers that halve the side and double the channels."""
    return nn.Sequential(
        ConvUnit(channels, 2 * channels, LARGE_KERNEL, stride=2, groups=channels, squeeze=squeeze, activate=True),
        ConvUnit(2 * channels, 2 * channels, 1, activate=True),
    )
