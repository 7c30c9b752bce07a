"""CLIP's ModifiedResNet in the contract's three parts (Radford et al., 2021, section 2.4).

Differences from a standard ResNet: the stem is three convolutions and an average pool; a stride is an average pool
and a convolution of stride 1 (anti-aliasing); the last pool is attention with the mean as query.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intclip.backbones.architecture import HEAD_WIDTH, Architecture, Split
from intclip.backbones.base import ImageHead
from intclip.errors import CheckpointError

EXPANSION = 4
STAGES = ("layer1", "layer2", "layer3", "layer4")
TRUNK_STAGES: dict[Split, int] = {"paper": 3, "released": 2}
"""Number of stages, of four, in the trunk."""


class Stem(nn.Module):
    """Three 3×3 convolutions and an average pool: pixels (B, 3, S, S) to (B, W, S/4, S/4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) to (B, W, S/4, S/4)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return F.avg_pool2d(x, 2)


class Bottleneck(nn.Module):
    """Residual block of 1×1, 3×3 and 1×1 convolutions; a stride is an average pool after the 3×3.

    Args:
        inputs: Input channels.
        planes: Inner channels; the output has 4 · planes.
        stride: 1 or 2.
    """

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        outputs = planes * EXPANSION
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            # OpenAI's key names: the pool has no weights and the name "-1".
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inputs, outputs, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outputs)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, 4 · planes, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + self.downsample(x), inplace=True)


class AttentionPool(ImageHead):
    """Attention over the positions of a feature map, with their mean as the only query.

    Args:
        grid: Side of the square feature map.
        width: Channels C of the feature map.
        embed_dim: Size D of the joint space.
    """

    def __init__(self, grid: int, width: int, embed_dim: int) -> None:
        super().__init__()
        if width % HEAD_WIDTH:
            raise CheckpointError(f"an attention pool of width {width} cannot have heads of width {HEAD_WIDTH}")
        self.heads = width // HEAD_WIDTH
        self.positional_embedding = nn.Parameter(torch.empty(grid * grid + 1, width))
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)

    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W) of a feature map (B, C, H, W): value, then output projection.

        The two projections are consecutive, so they are merged: C · D products per position instead of C · (C + D).
        Merging costs as much as D positions, so fewer positions go through both, unless a graph is being recorded,
        in which the merged matrix is a constant.
        """
        positions = deep.flatten(2).transpose(1, 2) + self.positional_embedding[1:]
        recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if recorded or positions.shape[0] * positions.shape[1] > self.c_proj.out_features:
            with torch.autocast(deep.device.type, enabled=False):
                weight = self.c_proj.weight @ self.v_proj.weight
                bias = self.c_proj(self.v_proj.bias)
            projected = F.linear(positions, weight, bias)
        else:
            projected = self.c_proj(self.v_proj(positions))
        return projected.transpose(1, 2).reshape(deep.shape[0], -1, *deep.shape[-2:])

    def pooled(self, deep: Tensor) -> Tensor:
        """Return the image embedding (B, D) of a feature map (B, C, H, W)."""
        positions = deep.flatten(2).transpose(1, 2)
        tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + self.positional_embedding
        query = self._split(self.q_proj(tokens[:, :1]))
        key, value = self._split(self.k_proj(tokens)), self._split(self.v_proj(tokens))
        out = F.scaled_dot_product_attention(query, key, value)
        embedding: Tensor = self.c_proj(out.flatten(1))
        return embedding

    def _split(self, tokens: Tensor) -> Tensor:
        """Reshape (B, N, C) to (B, heads, N, C / heads)."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


def build_resnet(architecture: Architecture, split: Split) -> tuple[nn.Sequential, nn.Sequential, AttentionPool]:
    """Build trunk, deep layers and head of a ModifiedResNet; weights are loaded later.

    Args:
        architecture: Sizes of a ResNet.
        split: "paper": the trunk is the stem and layer1–3, deep is layer4; "released": deep is layer3–4.
    """
    if not isinstance(architecture.vision_layers, tuple):
        raise ValueError("a ResNet has four stages")
    width = architecture.vision_width
    parts: OrderedDict[str, nn.Module] = OrderedDict(stem=Stem(width))
    inputs = width
    for index, (stage, depth) in enumerate(zip(STAGES, architecture.vision_layers, strict=True)):
        planes = width * 2**index
        blocks = [Bottleneck(inputs, planes, stride=2 if index else 1)]
        inputs = planes * EXPANSION
        blocks += [Bottleneck(inputs, planes, stride=1) for _ in range(depth - 1)]
        parts[stage] = nn.Sequential(*blocks)
    in_trunk = ("stem", *STAGES[: TRUNK_STAGES[split]])
    trunk = nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if name in in_trunk))
    deep = nn.Sequential(OrderedDict((name, part) for name, part in parts.items() if name not in in_trunk))
    return trunk, deep, AttentionPool(architecture.grid, inputs, architecture.embed_dim)
