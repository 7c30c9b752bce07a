"""EfficientNet-Lite: inverted bottlenecks without squeeze-and-excitation, ReLU6, any width and depth.

Tan and Le, EfficientNet (ICML 2019), section 3, in its authors' Lite variant: the stem, the depth of the first and
last stage, and the width of the head are not scaled. Every convolution is followed by a batch norm with fixed
statistics, which is folded into it: once at construction in frozen layers (`FoldedConv`), and in each forward pass in
trainable ones (`ConvBatchNorm`), so that gradients reach the convolution's weight and the norm's affine parameters.
docs/lab-book/lite-deep-layers.md has CPU timings of these layers.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.depthwise import depthwise
from intclip.errors import CheckpointError

BATCH_NORM_EPS = 1e-3
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


@dataclass(frozen=True)
class Stage:
    """Repeated inverted bottlenecks; `stride` is the first one's, `expand` is the factor of the inner width."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


_STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def scaled_stages(width: float, depth: float) -> list[Stage]:
    """Return the seven stages with channels times `width` (rounded to multiples of 8) and repeats times `depth`."""
    return [
        Stage(
            repeats=stage.repeats if index in (0, len(_STAGES) - 1) else math.ceil(depth * stage.repeats),
            kernel=stage.kernel,
            stride=stage.stride,
            expand=stage.expand,
            channels=_round_channels(stage.channels * width),
        )
        for index, stage in enumerate(_STAGES)
    ]


def _round_channels(channels: float) -> int:
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return TensorFlow's "same" padding (before, after) of one side; an odd pixel goes after."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def convolve(x: Tensor, weight: Tensor, bias: Tensor, stride: int, groups: int) -> Tensor:
    """Convolve x (B, C, H, W) with "same" padding to (B, C', H', W').

    Groups are either 1 or the number of channels. In training, a 1×1 convolution is a matrix product over the
    channels-last rows, whose backward pass is two products; for inference it stays a convolution, which engines can
    fuse and lay out freely.
    """
    kernel = weight.shape[-1]
    if kernel == 1 and torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    (top, bottom), (left, right) = (same_padding(side, kernel, stride) for side in x.shape[-2:])
    if groups > 1:
        return depthwise(x, weight, bias, stride, (left, right, top, bottom))
    return F.conv2d(F.pad(x, (left, right, top, bottom)) if kernel > 1 else x, weight, bias, stride)


def relu6(x: Tensor) -> Tensor:
    """Clamp to [0, 6]; in place at inference only, because in training autograd would copy the view of a product."""
    return F.relu6(x, inplace=not torch.is_grad_enabled())


def fold(weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Fold a batch norm into its convolution; return weight and bias.

    Args:
        weight: (C', C / groups, k, k).
        scale: (C',), the norm's γ.
        shift: (C',), the norm's β.
        mean: (C',), running mean.
        var: (C',), running variance.
    """
    factor = scale * torch.rsqrt(var + BATCH_NORM_EPS)
    return weight * factor.view(-1, 1, 1, 1), shift - mean * factor


class FoldedConv(nn.Module):
    """A convolution with its batch norm folded in.

    Attributes:
        weight: (C', C / groups, k, k).
        bias: (C',).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        return convolve(x, self.weight, self.bias, self.stride, self.groups)


class ConvBatchNorm(nn.Module):
    """A convolution and a batch norm with fixed statistics, whose weight, scale and shift can train.

    Attributes:
        weight: (C', C / groups, k, k).
        scale: (C',), the norm's γ.
        shift: (C',), the norm's β.
        mean: (C',), running mean, fixed.
        var: (C',), running variance, fixed.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.scale = nn.Parameter(torch.empty(outputs))
        self.shift = nn.Parameter(torch.empty(outputs))
        self.register_buffer("mean", torch.empty(outputs))
        self.register_buffer("var", torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', ⌈H / stride⌉, ⌈W / stride⌉)."""
        weight, bias = fold(self.weight, self.scale, self.shift, self.mean, self.var)
        return convolve(x, weight, bias, self.stride, self.groups)


Convolution = type[FoldedConv] | type[ConvBatchNorm]


class InvertedBottleneck(nn.Module):
    """Expand (1×1), filter each channel (k×k), project (1×1), with a shortcut if the shapes agree."""

    def __init__(self, convolution: Convolution, inputs: int, outputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden = inputs * stage.expand
        self.expand = convolution(inputs, hidden) if stage.expand > 1 else None
        self.depthwise = convolution(hidden, hidden, stage.kernel, stride, groups=hidden)
        self.project = convolution(hidden, outputs)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', H', W')."""
        hidden = x if self.expand is None else relu6(self.expand(x))
        out: Tensor = self.project(relu6(self.depthwise(hidden)))
        return out + x if self.shortcut else out


class Activated(nn.Module):
    """A convolution followed by ReLU6: the stem and the head."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) to (B, C', H', W'), within [0, 6]."""
        return relu6(self.convolution(x))


class ChannelsLast(nn.Sequential):
    """Runs layers in channels-last memory, for an input in any layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, C, H, W) through all layers."""
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self:
            x = layer(x)
        return x


def build_layers(width: float, depth: float, frozen: int) -> tuple[ChannelsLast, ChannelsLast]:
    """Build stem, bottlenecks and head, uninitialised, split in two parts.

    Args:
        width: Channel multiplier.
        depth: Repeat multiplier.
        frozen: Number of stages in the first part, besides the stem. Its batch norms are folded; the second part can
            train.

    Returns:
        (trunk, deep).
    """
    trunk: list[nn.Module] = [Activated(FoldedConv(3, STEM_CHANNELS, 3, 2))]
    deep: list[nn.Module] = []
    channels = STEM_CHANNELS
    for index, stage in enumerate(scaled_stages(width, depth)):
        part, convolution = (trunk, FoldedConv) if index < frozen else (deep, ConvBatchNorm)
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            part.append(InvertedBottleneck(convolution, channels, stage.channels, stage, stride))
            channels = stage.channels
    deep.append(Activated(ConvBatchNorm(channels, HEAD_CHANNELS)))
    return ChannelsLast(*trunk), ChannelsLast(*deep)


def stage_maps(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    """Return maps (B, C_i, H_i, W_i) of the last four sizes, fine to coarse: before each halving, and the last map.

    Args:
        layers: All layers, from the stem to the head.
        x: Pixels (B, 3, S, S).
    """
    maps = []
    x = x.contiguous(memory_format=torch.channels_last)
    for layer in layers:
        if isinstance(layer, InvertedBottleneck) and layer.depthwise.stride == 2:
            maps.append(x)
        x = layer(x)
    return [*maps, x][-4:]


def load_layers(trunk: ChannelsLast, deep: ChannelsLast, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Load both parts from a checkpoint with the key names of the PyTorch port (`_blocks.3._expand_conv.weight`).

    Args:
        trunk: From `build_layers`; may be on the meta device.
        deep: From `build_layers`.
        state: The checkpoint; not modified.

    Returns:
        The ImageNet classifier's weight (1000, 1280) and bias (1000,).

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshapen; all are named.
    """
    layers = [*trunk, *deep]
    expected = {"_fc.weight", "_fc.bias"}
    with torch.no_grad():
        for conv_key, norm_key, layer in named_convolutions(layers):
            keys = [f"{conv_key}.weight", *(f"{norm_key}.{part}" for part in ("weight", "bias"))]
            keys += [f"{norm_key}.running_{part}" for part in ("mean", "var")]
            expected.update(keys, [f"{norm_key}.num_batches_tracked"])
            if any(key not in state for key in keys):
                continue
            if state[keys[0]].shape != layer.weight.shape:
                shapes = f"{tuple(state[keys[0]].shape)}, not {tuple(layer.weight.shape)}"
                raise CheckpointError(f"EfficientNet checkpoint: {keys[0]} is {shapes}; choose the matching file")
            _fill(layer, *(state[key] for key in keys))
    _refuse("lacks", sorted(expected - state.keys()))
    _refuse("has unknown tensors", sorted(state.keys() - expected))
    return state["_fc.weight"], state["_fc.bias"]


def named_convolutions(layers: Sequence[nn.Module]) -> Iterator[tuple[str, str, FoldedConv | ConvBatchNorm]]:
    """Yield the checkpoint prefixes of each convolution and its batch norm, with our layer."""
    blocks = [layer for layer in layers if isinstance(layer, InvertedBottleneck)]
    for prefix, norm, layer in (("_conv_stem", "_bn0", layers[0]), ("_conv_head", "_bn1", layers[-1])):
        assert isinstance(layer, Activated)
        assert isinstance(layer.convolution, FoldedConv | ConvBatchNorm)
        yield prefix, norm, layer.convolution
    for index, block in enumerate(blocks):
        prefix = f"_blocks.{index}"
        if block.expand is not None:
            yield f"{prefix}._expand_conv", f"{prefix}._bn0", block.expand
        yield f"{prefix}._depthwise_conv", f"{prefix}._bn1", block.depthwise
        yield f"{prefix}._project_conv", f"{prefix}._bn2", block.project


def _fill(
    layer: FoldedConv | ConvBatchNorm, weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor
) -> None:
    state = {"weight": weight, "scale": scale, "shift": shift, "mean": mean, "var": var}
    if isinstance(layer, FoldedConv):
        weight, bias = fold(**state)
        state = {"weight": weight, "bias": bias}
    state["weight"] = state["weight"].contiguous(memory_format=torch.channels_last)
    layer.load_state_dict(state, assign=True)


def _refuse(what: str, keys: list[str]) -> None:
    if keys:
        raise CheckpointError(f"EfficientNet checkpoint {what}: {', '.join(keys)}; supply a file of the same variant")
