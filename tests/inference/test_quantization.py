"""int8 quantises all image towers, and nothing else."""

import re

import pytest
import torch

from fakes import tiny_taxonomy
from intclip.backbones.architecture import Architecture
from intclip.backbones.base import Backbone
from intclip.backbones.clip import random_clip
from intclip.backbones.lite import build_lite
from intclip.inference.export import build_graph, make_card
from intclip.inference.quantization import quantize_graph
from intclip.methods.registry import build_method


def small_resnet() -> Backbone:
    sizes = Architecture(
        image_size=64, embed_dim=16, vision_layers=(1, 1, 1, 1), vision_width=16, patch_size=None, text_width=64
    )
    return random_clip(sizes)


def is_int8(convolution) -> bool:
    """Return whether its weights are stored in int8."""
    kept = convolution.input_value(1).get_node()
    while kept.get_type_name() != "Constant":
        kept = kept.input_value(0).get_node()
    return kept.get_element_type().to_string() == "i8"


@pytest.mark.parametrize("make", [small_resnet, build_lite])
def test_every_convolution_of_the_towers_is_quantised(make, photos):
    """This includes convolutions with folded batch norms, which have no module name."""
    torch.manual_seed(0)
    method = build_method("intclip", make(), tiny_taxonomy(), {"sentence_form": "6-9"}).eval()
    card = make_card(method, model="test", thresholds=0.5)
    found = quantize_graph(build_graph(method, card, "openvino", maps=True), photos).model
    convolutions = [op for op in found.get_ops() if op.get_type_name().endswith("Convolution")]
    outside = [
        op
        for op in convolutions
        if re.search(r"__module\.module(\.method(\.aggregation\b.*)?)?/", op.get_friendly_name())
    ]
    assert len(convolutions) > 15 + len(outside)
    assert [op.get_friendly_name() for op in convolutions if not is_int8(op)] == [
        op.get_friendly_name() for op in outside
    ]
