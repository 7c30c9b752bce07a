"""Textbook EfficientNet-Lite with a checkpoint's own keys: Conv2d, BatchNorm2d, ReLU6, nothing folded."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding."""

    def forward(self, x):
        pads = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


def conv(state, conv_key, norm_key, stride=1, depthwise=False):
    weight = state[f"{conv_key}.weight"]
    outputs, inputs, kernel, _ = weight.shape
    groups = outputs if depthwise else 1
    layer = SameConv(inputs * groups, outputs, kernel, stride, groups=groups, bias=False)
    norm = nn.BatchNorm2d(outputs, eps=1e-3)
    layer.load_state_dict({"weight": weight})
    prefix = f"{norm_key}."
    norm.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    return nn.Sequential(layer, norm)


class Block(nn.Module):
    def __init__(self, state, index, stride):
        super().__init__()
        key = f"_blocks.{index}"
        parts = []
        if f"{key}._expand_conv.weight" in state:
            parts += [conv(state, f"{key}._expand_conv", f"{key}._bn0"), nn.ReLU6()]
        parts += [conv(state, f"{key}._depthwise_conv", f"{key}._bn1", stride, depthwise=True), nn.ReLU6()]
        parts.append(conv(state, f"{key}._project_conv", f"{key}._bn2"))
        self.parts = nn.Sequential(*parts)

    def forward(self, x):
        y = self.parts(x)
        return y + x if y.shape == x.shape else y


def plain_layers(state, repeats):
    """Build stem, blocks and head, one module per layer; `repeats` of the seven stages."""
    blocks = []
    for count, stride in zip(repeats, (1, 2, 2, 2, 1, 2, 1), strict=True):
        blocks += [stride] + [1] * (count - 1)
    layers = [nn.Sequential(conv(state, "_conv_stem", "_bn0", 2), nn.ReLU6())]
    layers += [Block(state, index, stride) for index, stride in enumerate(blocks)]
    layers.append(nn.Sequential(conv(state, "_conv_head", "_bn1"), nn.ReLU6()))
    return nn.ModuleList(layers).eval()


def random_state(layers_of, seed=0):
    """A checkpoint with the key names of the PyTorch port and random tensors, for ours built by `layers_of()`."""
    from intclip.backbones.efficientnet_lite import named_convolutions

    generator = torch.Generator().manual_seed(seed)
    state = {}
    for conv_key, norm_key, layer in named_convolutions(layers_of()):
        shape = layer.weight.shape
        state[f"{conv_key}.weight"] = torch.randn(shape, generator=generator) * math.prod(shape[1:]) ** -0.5 * 1.4
        for part in ("weight", "running_var"):
            state[f"{norm_key}.{part}"] = torch.rand(shape[0], generator=generator) + 0.5
        for part in ("bias", "running_mean"):
            state[f"{norm_key}.{part}"] = torch.randn(shape[0], generator=generator) * 0.3
        state[f"{norm_key}.num_batches_tracked"] = torch.tensor(1)
    state["_fc.weight"] = torch.randn(1000, 1280, generator=generator)
    state["_fc.bias"] = torch.zeros(1000)
    return state
