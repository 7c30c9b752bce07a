"""The registry, and what every method must keep."""

import pytest
import torch
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Options
from intclip.methods.registry import METHODS, build_method, method_class, method_options

UNTRAINED = {"prior", "zero_shot", "tip_adapter"}
NO_MAPS = {"prior", "linear_probe", "mlp_probe"}
MINE = ["prior", "zero_shot", "linear_probe", "mlp_probe", "coop", "cocoop", "tip_adapter", "dualcoop", "intclip"]

SMALL = {"cocoop": {"reduction": 1, "scale": 10}}  # one hidden unit may be a dead one


def batch(backbone: TinyBackbone, method: Method, images: int = 4, seed: int = 0) -> tuple[Features, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 24, 24, generator=generator)
    targets = (torch.rand(images, 5, generator=generator) < 0.4).float()
    targets[0, 0] = float("nan")
    return backbone.features(pixels, method.needs), targets


def built(name: str, backbone: TinyBackbone, **options: object) -> Method:
    torch.manual_seed(1)
    context = {"context_length": 3} if "context_length" in method_options(name).model_fields else {}
    return build_method(name, backbone, tiny_taxonomy(), {**context, **SMALL.get(name, {}), **options})


@pytest.mark.parametrize("name", MINE)
def test_every_method_keeps_the_contract(name: str, tiny_backbone: TinyBackbone) -> None:
    method = built(name, tiny_backbone)
    assert issubclass(method_options(name), Options)
    features, targets = batch(tiny_backbone, method)
    method.prepare([(features, targets), batch(tiny_backbone, method, seed=1)])
    output = method.train()(features)
    assert output.logits.shape == (4, 5)
    loss = sum(method.loss(output, targets).values())
    assert isinstance(loss, Tensor)
    assert loss.isfinite()
    assert all(parameter.requires_grad is False for parameter in tiny_backbone.parameters())
    method.eval()
    with torch.no_grad():
        shown = method(features, maps=True)
    torch.testing.assert_close(shown.logits, method(features).logits)
    assert bool(shown.maps) == (name not in NO_MAPS)
    assert all(value.shape == (4, 5, 3, 3) for value in shown.maps.values())


@pytest.mark.parametrize("name", MINE)
def test_gradient_reaches_what_should_learn_and_nothing_else(name: str, tiny_backbone: TinyBackbone) -> None:
    method = built(name, tiny_backbone).train()
    features, targets = batch(tiny_backbone, method)
    grouped = [parameter for group in method.parameter_groups() for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, method.learnable_parameters()))
    assert bool(grouped) == (name not in UNTRAINED)
    assert all(not key.startswith("backbone.") for key in method.own_state())
    if not grouped:
        return
    optimizer = torch.optim.SGD(grouped, lr=0.5)
    for _ in range(2):  # some parameters only take a gradient once others have left zero
        optimizer.zero_grad()
        sum(method.training_loss([features], targets).values()).backward()
        optimizer.step()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", MINE)
def test_own_state_makes_an_equal_method(name: str, tiny_backbone: TinyBackbone) -> None:
    first, second = (
        built(name, tiny_backbone),
        build_method(name, tiny_backbone, tiny_taxonomy(), built(name, tiny_backbone).options),
    )
    features, targets = batch(tiny_backbone, first)
    first.prepare([(features, targets)])
    with torch.no_grad():
        for parameter in first.learnable_parameters():
            parameter += torch.randn_like(parameter)
    second.load_own_state(first.own_state())
    torch.testing.assert_close(second.eval()(features).logits, first.eval()(features).logits)


def test_registered_names_are_folders() -> None:
    assert set(MINE) <= set(METHODS)
    own = {name: place for name, place in METHODS.items() if place.startswith("intclip.")}  # a test may add a toy
    for name, place in own.items():
        module, _, cls = place.partition(":")
        assert module == f"intclip.methods.{name}.model"
        assert method_class(name).__name__ == cls
        assert issubclass(method_options(name), Options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("intclpi", {}, "unknown method 'intclpi'; did you mean intclip?"),
        ("zzz", {}, "unknown method 'zzz'; known: prior"),
        ("intclip", {"agregation": "paper"}, "no option 'agregation'; did you mean aggregation?"),
        ("intclip", {"aggregation": "papre"}, "option aggregation of method intclip: .*'paper'"),
        ("intclip", {"loss": {"margin": 2}}, "option loss.margin of method intclip: .*less than 1 .*got 2"),
        (
            "coop",
            {"loss": {"reduction": "none"}},
            "option loss.reduction of method coop: .*'mean'",
        ),  # no number to learn by
        ("zero-shot", {"templates": "foto"}, "unknown template set 'foto'"),
        ("zero_shot", {"templates": ["a photo"]}, "each template must hold"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(
    name: str, options: dict[str, object], message: str, tiny_backbone: TinyBackbone, five_classes: Taxonomy
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_method(name, tiny_backbone, five_classes, options)
    assert "\n" not in str(caught.value)
