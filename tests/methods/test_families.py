"""Every method trains, and gives evidence, on every family of backbones."""

import pytest
import torch

from fakes import tiny_taxonomy
from families import FAMILIES, family_of
from intclip.backbones.architecture import ARCHITECTURES
from intclip.methods.registry import METHODS, build_method, method_options

OTHERS = sorted({family_of(name) for name, sizes in ARCHITECTURES.items() if sizes.family != "clip"})
CELLS = [(method, family) for method in sorted(METHODS) for family in OTHERS]


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_two_steps_and_maps(name, family):
    torch.manual_seed(1)
    options = {"context_length": 3} if "context_length" in method_options(name).model_fields else {}
    backbone = FAMILIES[family]()
    method = build_method(name, backbone, tiny_taxonomy(), options)
    side = backbone.image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, side, side, generator=generator)
    targets = (torch.rand(6, len(tiny_taxonomy()), generator=generator) < 0.4).float()
    targets[0], targets[1] = 1, 0
    features = backbone.features(pixels, method.needs)
    for extra, shape in (
        ("mask", (6, 1, side, side)),
        ("text", (6, backbone.text.embed_dim)),
        ("words", (6, 3, backbone.text.embed_dim)),
    ):
        if extra in method.extra_inputs:
            features[extra] = torch.rand(shape, generator=generator)
    method.prepare([(features, targets)])
    learned = [parameter for parameter in method.learnable_parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in learned]
    for step in range(2 if learned else 0):
        method.before_step(step)
        terms = method.train().training_loss([features] * method.views, targets)
        loss = torch.stack(list(terms.values())).sum()
        assert loss.isfinite()
        if not loss.requires_grad:
            break
        loss.backward()
        with torch.no_grad():
            for parameter in learned:
                if parameter.grad is not None:
                    assert parameter.grad.isfinite().all()
                    parameter -= 0.01 * parameter.grad / parameter.grad.norm().clamp(min=1)
                    parameter.grad = None
        method.after_step()
    else:
        moved = [not torch.equal(old, new) for old, new in zip(before, learned, strict=True)]
        assert any(moved) or not learned
    method.eval()
    with torch.no_grad():
        output = method(features, maps=True)
    assert output.logits.shape == targets.shape
    assert output.logits.isfinite().all()
    assert all(value.isfinite().all() and len(value) == 6 for value in output.maps.values())
