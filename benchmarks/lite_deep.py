"""Deep layers of `lite` in eager PyTorch: forward and a training step in every variant tried.

    python benchmarks/lite_deep.py [--batch 32] [--threads 1] [--repeats 7] [--json]

Prints milliseconds, the minimum of alternating repeats: with one thread CPU time, which does not depend on other load,
else wall time. All variants must give the plain layers' numbers. docs/lab-book/lite-deep-layers.md describes them.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones import efficientnet_lite
from intclip.backbones.efficientnet_lite import Activated, ConvBatchNorm, InvertedBottleneck, same_padding
from intclip.backbones.lite import build_lite


class Convolve(Protocol):
    """Replacement of `efficientnet_lite.convolve`."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
        """Convolve x (B, C, H, W) with "same" padding to (B, C', H', W')."""


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        return super().forward(padded(x, self.kernel_size[0], self.stride[0]))


def padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    (top, bottom), (left, right) = (same_padding(side, kernel, stride) for side in x.shape[-2:])
    return F.pad(x, (left, right, top, bottom)) if kernel > 1 else x


def plain(layer: nn.Module) -> nn.Module:
    """Return the same layer as Conv2d, BatchNorm2d and ReLU6."""
    if isinstance(layer, ConvBatchNorm):
        outputs, inputs, kernel, _ = layer.weight.shape
        conv = SameConv(inputs * layer.groups, outputs, kernel, layer.stride, groups=layer.groups, bias=False)
        norm = nn.BatchNorm2d(outputs, eps=efficientnet_lite.BATCH_NORM_EPS)
        with torch.no_grad():
            conv.weight.copy_(layer.weight)
        norm.load_state_dict(
            {
                "weight": layer.scale,
                "bias": layer.shift,
                "running_mean": layer.mean,
                "running_var": layer.var,
                "num_batches_tracked": torch.tensor(0),
            }
        )
        return nn.Sequential(conv, norm)
    if isinstance(layer, Activated):
        return nn.Sequential(plain(layer.convolution), nn.ReLU6())
    assert isinstance(layer, InvertedBottleneck)
    assert layer.expand is not None
    inner = [plain(layer.expand), nn.ReLU6(), plain(layer.depthwise), nn.ReLU6(), plain(layer.project)]
    return Shortcut(*inner) if layer.shortcut else nn.Sequential(*inner)


class Shortcut(nn.Sequential):
    """Layers with a shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to the same shape."""
        out = x
        for layer in self:
            out = layer(out)
        return x + out


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    """Convolve with PyTorch, channels-last and folded."""
    return F.conv2d(padded(x, weight.shape[-1], stride), weight, bias, stride, groups=groups)


def products(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    """The same, with 1 × 1 convolutions as matrix products."""
    if weight.shape[-1] > 1:
        return convolution(x, weight, bias, stride, groups)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


_patterns: dict[tuple[int, int, int], Tensor] = {}


def toeplitz(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    """Convolve by matrix products in the layout (C, B, H, W); depthwise as C products with (HW, H'W') matrices."""
    channels, batch, side, _ = x.shape
    kernel = weight.shape[-1]
    if kernel == 1:
        return torch.addmm(bias[:, None], weight.flatten(1), x.reshape(channels, -1)).view(-1, batch, side, side)
    key = (side, kernel, stride)
    if key not in _patterns:
        taps = torch.eye(kernel * kernel).view(-1, 1, kernel, kernel)
        pixels = torch.eye(side * side).view(-1, 1, side, side)
        out = F.conv2d(padded(pixels, kernel, stride), taps, stride=stride)  # (HW, k², H', W')
        _patterns[key] = out.transpose(0, 1).flatten(2).flatten(1)
    target = -(-side // stride)
    matrices = (weight.view(channels, -1) @ _patterns[key]).view(channels, side * side, target * target)
    out = torch.baddbmm(bias[:, None, None], x.reshape(channels, batch, -1), matrices)
    return out.view(channels, batch, target, target)


def with_convolve(
    deep: nn.Sequential, convolve: Convolve, *, channels_first: bool = False
) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        before = efficientnet_lite.convolve
        efficientnet_lite.convolve = convolve
        try:
            if not channels_first:
                out: Tensor = deep(x)
                return out
            x = x.transpose(0, 1).contiguous()
            for layer in deep:
                x = layer(x)
            return x.transpose(0, 1)
        finally:
            efficientnet_lite.convolve = before

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.threads == 1 else time.perf_counter

    [(_, deep)] = build_lite().parts()
    deep.requires_grad_()
    simple = nn.Sequential(*(plain(layer) for layer in deep)).eval()
    last = nn.utils.convert_conv2d_weight_memory_format(copy.deepcopy(simple), torch.channels_last)
    x = torch.rand(arguments.batch, 112, 14, 14, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x_last = x.contiguous(memory_format=torch.channels_last)
    shapes: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, nn.Module]] = {
        "plain layers": (simple, x, simple),
        "channels-last": (last, x_last, last),
        "and batch norms folded": (with_convolve(deep, convolution), x_last, deep),
        "and 1 × 1 as products": (with_convolve(deep, products), x_last, deep),
        "and depthwise in strips (shipped)": (deep, x_last, deep),
        "all as Toeplitz products": (with_convolve(deep, toeplitz, channels_first=True), x, deep),
    }
    expected = simple(x)
    times: dict[str, dict[str, float]] = {name: {} for name in shapes}
    for _ in range(arguments.repeats):
        for name, (function, pixels, module) in shapes.items():
            module.zero_grad()
            start = clock()
            with torch.no_grad():
                function(pixels)
            middle = clock()
            out = function(pixels)
            torch.autograd.backward(out.square().mean())
            end = clock()
            assert (out - expected).abs().max() < 1e-5 * expected.abs().max(), name
            for what, value in (("forward", middle - start), ("training", end - middle)):
                times[name][what] = min(times[name].get(what, float("inf")), 1000 * value)
    if arguments.json:
        print(json.dumps(times, indent=1))
        return
    for name, row in times.items():
        share = times["plain layers"]["training"] / row["training"]
        print(f"{name:36} forward {row['forward']:7.1f}  training {row['training']:7.1f}  ({share:.2f} ×)")


if __name__ == "__main__":
    main()
