"""The engine table in ONNX, see `engine_table`, other regions, and what a converter must reject."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_table import ONNX_CELLS, check
from torch import nn

from families import FAMILIES
from intclip.backbones.clip import random_clip
from intclip.errors import IntclipError
from intclip.inference.conversion import to_onnx, to_openvino
from intclip.inference.engines import OpenvinoEngine


@pytest.mark.parametrize(("method", "family"), ONNX_CELLS)
def test_onnx_gives_torch_s_numbers(method, family):
    check("onnx", method, FAMILIES[family](), family)


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize("regions", ["values", "clear"])
def test_other_regions_of_a_vit(format, regions):
    check(format, "intclip", random_clip(replace(FAMILIES["CLIP ViT"]().architecture, regions=regions)))


class KeepsBatch(nn.Module):
    """A former bug of `as_map` of CLIP's ViT: `len` of a traced tensor is the example's."""

    def forward(self, pixels):
        return pixels.reshape(len(pixels), -1)


class KeepsOrder(nn.Module):
    """A former bug of the text tower with CoCoOp's prompts: rows sorted by values from the example."""

    def forward(self, pixels):
        order = pixels.mean(dim=(1, 2, 3)).argsort()
        return pixels.flatten(1)[order.tolist()]


class KeepsBranch(nn.Module):
    """A branch on the values of the photos."""

    def forward(self, pixels):
        return pixels * 2 if float(pixels[0].mean()) > 0 else pixels


class KeepsNumber(nn.Module):
    """A number read from the photos."""

    def forward(self, pixels):
        return pixels / float(pixels.abs().max())


class NegativeScale(nn.Module):
    """OpenVINO 2026.4 by default may use -1 instead of -γ in its streams for many photos."""

    def __init__(self):
        super().__init__()
        self.register_buffer("gamma", torch.tensor([2.0]))
        self.register_buffer("weight", torch.randn(16, 192, generator=torch.Generator().manual_seed(0)) / 14)

    def forward(self, pixels):
        return torch.exp(-self.gamma[0] * (1 - pixels.flatten(1) @ self.weight.T))


def test_streams_compute_what_torch_does_each_time_they_are_compiled():
    module, pixels = NegativeScale(), np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32) / 4
    model = to_openvino(module, pixels)
    expected = module(torch.from_numpy(pixels)).numpy()
    for _ in range(20):
        np.testing.assert_allclose(OpenvinoEngine(model)(pixels)["output"], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("convert", "frozen"),
    [
        *((to_openvino, frozen) for frozen in (KeepsBatch, KeepsOrder, KeepsBranch, KeepsNumber)),
        *((to_onnx, frozen) for frozen in (KeepsBatch, KeepsOrder, KeepsBranch)),  # it knows how to export a number
    ],
)
def test_what_a_trace_froze_fails_at_conversion_in_one_line(convert, frozen, capfd):
    example = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with pytest.raises(IntclipError) as caught:
        convert(frozen(), example)
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert "engine='torch'" in message
    assert capfd.readouterr().err == ""
