"""Every method on every family of backbones equals torch on every engine, at every batch size.

A tracer records values that Python reads from the example as constants: batch size, order, branch. Such a graph is
right only for the example, so each graph is tested with other sizes and photos.

A graph is a backbone's tower with a method's head. As in use, methods with the same features share a family's tower.
"""

import functools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fakes import tiny_taxonomy
from families import FAMILIES, family_of
from intclip.backbones.clip import random_clip
from intclip.backbones.registry import backbone_names
from intclip.errors import IntclipError
from intclip.inference.card import ATTENTION_OUTPUT, MAP_PREFIX
from intclip.inference.conversion import to_onnx, to_openvino
from intclip.inference.engines import OpenvinoEngine
from intclip.inference.export import build_graph, make_card, tower_features, trains_trunk
from intclip.inference.exported import PREDICTION_OUTPUTS, Tower
from intclip.inference.graph import FeatureGraph, PhotoGraph, example_pixels
from intclip.methods.registry import METHODS, build_method, method_options

BATCHES = (1, 2, 3, 5, 8)
TOLERANCE = 1e-4
"""Absolute for values up to 1, and relative to the largest value above."""
WHOLE = "INTCLIP_WHOLE_TABLE"
"""Environment variable: test every cell in ONNX, whose converter takes seconds per graph, instead of one per method."""
CELLS = [(method, family) for method in sorted(METHODS) for family in FAMILIES]
ONNX_CELLS = (
    CELLS
    if os.environ.get(WHOLE)
    else [(method, [*FAMILIES][place % len(FAMILIES)]) for place, method in enumerate(sorted(METHODS))]
)


def prepared_method(name, backbone):
    """Return a method on a tiny backbone, with learned parts changed from their initial values."""
    torch.manual_seed(1)
    options = {"context_length": 3} if "context_length" in method_options(name).model_fields else {}
    method = build_method(name, backbone, tiny_taxonomy(), options)
    pixels = torch.from_numpy(example_pixels(backbone, 16))
    targets = (torch.rand(16, len(tiny_taxonomy())) < 0.4).float()
    with torch.no_grad():
        method.prepare([(backbone.features(pixels, method.needs), targets)])
        for parameter in method.learnable_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return method.eval()


def photos(backbone, count):
    """Return pixels (count, 3, S, S), different for each count, some bright and some dark."""
    rng = np.random.default_rng(count)
    shape = (count, 3, backbone.image_size, backbone.image_size)
    return (rng.standard_normal(shape) + rng.standard_normal((count, 1, 1, 1))).astype(np.float32)


def largest_difference(found, expected):
    """Return the largest difference from torch over all outputs, with the output's name."""
    assert set(found) == set(expected)
    worst = (0.0, "")
    for name, values in found.items():
        wanted = expected[name].numpy()
        assert values.shape == wanted.shape, name
        difference = np.abs(values - wanted).max() / max(1, np.abs(wanted).max())
        assert np.isfinite(difference), name
        worst = max(worst, (float(difference), name))
    return worst


@pytest.mark.parametrize(("method", "family"), CELLS)
def test_openvino_gives_torch_s_numbers(method, family):
    check("openvino", method, FAMILIES[family](), family)


@pytest.mark.parametrize(("method", "family"), ONNX_CELLS)
def test_onnx_gives_torch_s_numbers(method, family):
    check("onnx", method, FAMILIES[family](), family)


@pytest.mark.parametrize("format", ["openvino", "onnx"])
@pytest.mark.parametrize("regions", ["values", "clear"])
def test_other_regions_of_a_vit(format, regions):
    check(format, "intclip", random_clip(replace(FAMILIES["CLIP ViT"]().architecture, regions=regions)))


@functools.cache
def shared_tower(family, names, format):
    """Convert a family's tower once for all methods that need these features."""
    backbone = FAMILIES[family]()
    convert = to_openvino if format == "openvino" else to_onnx
    model = convert(FeatureGraph(backbone, names), example_pixels(backbone))
    return Tower(format, model if format == "openvino" else model.SerializeToString())


def check(format, method, backbone, family=None):
    built = prepared_method(method, backbone)
    card = make_card(built, model=method, thresholds=0.5)
    shared = family is not None and not trains_trunk(built)
    tower = shared_tower(family, tower_features(built), format) if shared else None
    graph = build_graph(built, card, format, maps=bool(card.maps), tower=tower)
    module = PhotoGraph(built, exclusive=False, maps=bool(card.maps))
    maps = [MAP_PREFIX + name for name in card.maps] + [ATTENTION_OUTPUT] * card.attention
    engine = graph.engine((*PREDICTION_OUTPUTS, *maps))
    runs = [(engine, count) for count in BATCHES]
    if maps:
        runs.append((graph.engine(PREDICTION_OUTPUTS), 3))
    for engine, count in runs:
        pixels = photos(backbone, count)
        with torch.no_grad():
            expected = module(torch.from_numpy(pixels))
        found = engine(pixels)
        difference, output = largest_difference(found, {name: expected[name] for name in engine.outputs})
        assert difference <= TOLERANCE, f"{output} of {count}"


def test_every_registered_backbone_is_of_a_family_in_the_table():
    named = set(backbone_names()) - {"tiny"}  # of the fixture, for all tests of this folder
    assert {family_of(name) for name in named} <= set(FAMILIES)


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
