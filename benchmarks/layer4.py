"""RN101's trained layer4 in every shape that was tried in eager PyTorch: forward and backward, in turns.

    python -m benchmarks.layer4 --out docs/figures/layer4.json

All shapes are checked to give the plain layers' numbers. docs/performance.md says what they are and what came of them.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.machine import write_report
from benchmarks.setup import parse, parser, resnets
from intclip.backbones.clip_resnet import Bottleneck
from intclip.timing import paired

Conv = Callable[[Tensor, nn.Conv2d, nn.BatchNorm2d], Tensor]
"""Convolution and batch norm of a map (B, H, W, C)."""


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that does both, with gradients to the norm's affine parameters."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


def as_convolution(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """One convolution with the norm folded in."""
    weight, bias = fold(conv, norm)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=conv.padding).permute(0, 2, 3, 1)


def as_product(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """1×1: a matrix product over the rows of a channels-last map."""
    weight, bias = fold(conv, norm)
    return F.linear(x, weight.flatten(1), bias)


def as_columns(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """3×3: nine shifted maps side by side, and one matrix product."""
    weight, bias = fold(conv, norm)
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 1, 1, 1, 1))
    columns = torch.cat([x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)], dim=-1)
    return F.linear(columns, weight.permute(0, 2, 3, 1).flatten(1), bias)


def as_winograd(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """3×3: Winograd's F(2×2, 3×3), sixteen matrix products over tiles (Lavin and Gray, CVPR 2016)."""
    weight, bias = fold(conv, norm)
    batch, size, _, channels = x.shape
    tiles = (size + 1) // 2
    behind = 2 * tiles + 1 - size
    x = F.pad(x, (0, 0, 1, behind, 1, behind))
    rows = _input_transform([x[:, i : i + 2 * tiles - 1 : 2] for i in range(4)])
    cells = [
        cell for row in rows for cell in _input_transform([row[:, :, j : j + 2 * tiles - 1 : 2] for j in range(4)])
    ]
    g = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
    kernels = torch.einsum("ai,ocij,bj->abco", g, weight, g).reshape(16, channels, -1)
    products = torch.bmm(torch.stack(cells).view(16, -1, channels), kernels).view(4, 4, batch, tiles, tiles, -1)
    out = [torch.stack(_output_transform(row.unbind()), dim=3) for row in _output_transform(products.unbind())]
    return torch.stack(out, dim=2).reshape(batch, 2 * tiles, 2 * tiles, -1)[:, :size, :size] + bias


def _input_transform(d: list[Tensor]) -> list[Tensor]:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _output_transform(m: tuple[Tensor, ...]) -> list[Tensor]:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def run(blocks: nn.Sequential, x: Tensor, pointwise: Conv, spatial: Conv) -> Tensor:
    """A stage of bottlenecks over a map (B, C, H, W), with these two kinds of convolution."""
    x = x.permute(0, 2, 3, 1)
    for block in blocks:
        assert isinstance(block, Bottleneck)
        out = F.relu(pointwise(x, block.conv1, block.bn1))
        out = F.relu(spatial(out, block.conv2, block.bn2))
        out = pointwise(pool(out, block.avgpool), block.conv3, block.bn3)
        if isinstance(block.downsample, nn.Sequential):
            shortcut, conv, norm = block.downsample
            x = pointwise(pool(x, shortcut), conv, norm)
        x = F.relu(out + x)
    return x.permute(0, 3, 1, 2)


def pool(x: Tensor, layer: nn.Module) -> Tensor:
    """A pooling layer on a map (B, H, W, C)."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def main() -> None:
    arguments = parse(parser(__doc__))
    _, backbone = resnets()
    plain = copy.deepcopy(backbone.deep.layer4).requires_grad_()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    trunk = torch.randn(arguments.batch, 1024, 14, 14).relu()
    trunk_last = trunk.to(memory_format=torch.channels_last)
    shapes: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: plain(trunk),
        "channels-last": lambda: last(trunk_last),
        "channels-last, norms folded": lambda: run(last, trunk_last, as_convolution, as_convolution),
        "1×1 as products": lambda: run(last, trunk_last, as_product, as_convolution),
        "1×1 as products, 3×3 as columns": lambda: run(last, trunk_last, as_product, as_columns),
        "1×1 as products, 3×3 by Winograd": lambda: run(last, trunk_last, as_product, as_winograd),
    }
    with torch.no_grad():
        expected = shapes["plain"]()
        errors = {
            name: float((shape() - expected).abs().max() / expected.abs().max()) for name, shape in shapes.items()
        }
    assert max(errors.values()) < 1e-5, errors
    steps = {name: lambda shape=shape: shape().sum().backward() for name, shape in shapes.items()}
    result = paired(steps, baseline="plain", repeats=arguments.repeats, clock=arguments.clock)
    write_report(arguments.out, {"batch": arguments.batch, "largest difference over largest value": errors, **result})


if __name__ == "__main__":
    main()
