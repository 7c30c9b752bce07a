"""Every method on every family of backbones equals torch on every engine, at every batch size.

A tracer records values that Python reads from the example as constants: batch size, order, branch. Such a graph is
right only for the example, so each graph is tested with other sizes and photos.

A graph is a backbone's tower with a method's head. As in use, methods with the same features share a family's tower.
The table fills three test files, so that processes share the work.
"""

import functools
import os

import numpy as np
import torch

from fakes import tiny_taxonomy
from families import FAMILIES
from intclip.inference.card import ATTENTION_OUTPUT, MAP_PREFIX
from intclip.inference.conversion import to_onnx, to_openvino
from intclip.inference.export import build_graph, make_card, tower_features, trains_trunk
from intclip.inference.exported import PREDICTION_OUTPUTS, Tower
from intclip.inference.graph import FeatureGraph, PhotoGraph, example_pixels
from intclip.methods.registry import METHODS, build_method, method_options

BATCHES = (1, 2, 3, 5, 8)
TOLERANCE = 1e-4
"""Absolute for values up to 1, and relative to the largest value above."""
WHOLE = "INTCLIP_WHOLE_TABLE"
"""Environment variable: test every cell in ONNX, whose converter takes seconds per graph, instead of one per method."""
METHOD_NAMES = sorted(METHODS)
OTHERS = [family for family in FAMILIES if family.split()[0] != "CLIP" and family not in ("lite", "side by side")]
"""Families of `test_engine_table_others`."""
ONNX_CELLS = (
    [(method, family) for method in METHOD_NAMES for family in FAMILIES]
    if os.environ.get(WHOLE)
    else [(method, [*FAMILIES][place % len(FAMILIES)]) for place, method in enumerate(METHOD_NAMES)]
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
