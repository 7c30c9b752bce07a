"""What a method says of its loss must be true: the loop weighs the parts of a batch by it."""

import pytest
import torch

from fakes import TinyBackbone, tiny_taxonomy
from intclip.methods.registry import METHODS, build_method, method_options

SMALL = {"context_length": 3, "decoder": {"dim": 8, "heads": 2}}
NAMES = [name for name, module in METHODS.items() if module.startswith("intclip.")]


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_taken_twice_doubles_a_sum_and_keeps_a_mean(name: str) -> None:
    torch.manual_seed(0)
    backbone = TinyBackbone()
    options = {key: value for key, value in SMALL.items() if key in method_options(name).model_fields}
    method = build_method(name, backbone, tiny_taxonomy(), options)
    features = backbone.features(torch.randn(6, 3, 24, 24), method.needs)
    targets = (torch.rand(6, 5) < 0.4).float()
    method.prepare([(features, targets)])
    method.eval()
    twice = {key: torch.cat([value, value]) for key, value in features.items()}
    with torch.no_grad():
        once = torch.stack(list(method.loss(method(features), targets).values())).sum()
        both = torch.stack(list(method.loss(method(twice), torch.cat([targets, targets])).values())).sum()
    torch.testing.assert_close(both / once, torch.tensor({"sum": 2.0, "mean": 1.0}[method.loss_reduction]))
