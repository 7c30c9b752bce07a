"""Features computed in bf16 are never confused with those in fp32."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch

from intclip.data.feature_cache import cache_key
from intclip.training.frozen import FrozenFeatures

BF16 = partial(torch.autocast, "cpu", torch.bfloat16)
NAMES = ("trunk", "regions")


@pytest.mark.parametrize(
    ("engine", "precision", "arithmetic"),
    [("torch", nullcontext, "fp32"), ("torch", BF16, "bf16"), ("openvino", BF16, "fp32")],
)
def test_arithmetic_is_what_the_features_are_computed_in(tiny_backbone, engine, precision, arithmetic):
    frozen = FrozenFeatures(tiny_backbone, NAMES, device=torch.device("cpu"), engine=engine, precision=precision)
    assert frozen.arithmetic == arithmetic
    pixels = torch.randn(2, 3, tiny_backbone.image_size, tiny_backbone.image_size)
    exact = tiny_backbone.features(pixels, NAMES)["regions"]
    error = (frozen(pixels)["regions"].float() - exact).abs().max() / exact.abs().max()
    assert (error > 1e-4) == (arithmetic == "bf16")


def test_caches_of_different_arithmetic_have_different_keys(tiny_backbone):
    digests = {cache_key(tiny_backbone, NAMES, precision=precision).digest() for precision in ("fp32", "bf16", "fp16")}
    assert len(digests) == 3
