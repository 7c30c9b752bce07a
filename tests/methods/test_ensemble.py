"""An ensemble is its members: their mean, their losses, their gradients, their state."""

import pytest
import torch

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import load_backbone
from intclip.errors import RecipeError
from intclip.inference.bundle import load_bundle, save_bundle
from intclip.methods.registry import build_method

INTCLIP = {
    "method": "intclip",
    "options": {"sentence_form": "6-9", "context_length": 3, "loss": {"reduction": "batch"}},
}
RIDGE = {"method": "ridge_probe"}


def batch(backbone: TinyBackbone, count: int = 12) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 24, 24, generator=generator)
    return backbone.features(pixels, ("trunk", "regions")), torch.rand(count, 5, generator=generator)


def test_logits_are_the_weighted_mean_and_maps_the_first_members() -> None:
    backbone = TinyBackbone()
    features, targets = batch(backbone)
    method = build_method(
        "ensemble", backbone, tiny_taxonomy(), {"members": [INTCLIP, INTCLIP | {"weight": 2}, RIDGE]}
    ).eval()
    method.prepare([(features, targets)])
    found = method(features, maps=True)
    first, second, third = (each(features, maps=number < 2) for number, each in enumerate(method.members))
    torch.testing.assert_close(found.logits, (first.logits + 2 * second.logits + third.logits) / 4)
    torch.testing.assert_close(found.maps, first.maps)


def test_members_train_as_they_would_alone() -> None:
    backbone = TinyBackbone()
    features, targets = batch(backbone)
    method = build_method("ensemble", backbone, tiny_taxonomy(), {"members": [INTCLIP, INTCLIP, RIDGE]})
    starts = [next(iter(each.learnable_parameters())).detach().clone() for each in method.members[:2]]
    assert not torch.equal(*starts)
    terms = method.training_loss([features], targets)
    sum(terms.values()).backward()
    assert all(name.startswith(("1 ", "2 ")) for name in terms)
    for each in method.members[:2]:
        together = [parameter.grad.clone() for parameter in each.learnable_parameters() if parameter.grad is not None]
        each.zero_grad()
        sum(each.training_loss([features], targets).values()).backward()
        alone = [parameter.grad for parameter in each.learnable_parameters() if parameter.grad is not None]
        torch.testing.assert_close(together, alone)
    grouped = {id(parameter) for group in method.parameter_groups() for parameter in group.parameters}
    assert grouped == {id(parameter) for parameter in method.learnable_parameters()}


def test_a_member_may_learn_at_rates_of_its_own() -> None:
    members = [INTCLIP, INTCLIP | {"lr": 0.25}]
    method = build_method("ensemble", TinyBackbone(), tiny_taxonomy(), {"members": members})
    first = [group.lr_multiplier for group in method.members[0].parameter_groups()]
    given = {group.name: group.lr_multiplier for group in method.parameter_groups()}
    assert [given[name] for name in given if name.startswith("1 ")] == first
    assert [given[name] for name in given if name.startswith("2 ")] == [0.25 * rate for rate in first]


def test_state_goes_into_another_and_holds_no_backbone() -> None:
    backbone = TinyBackbone()
    features, targets = batch(backbone)
    one, other = (
        build_method("ensemble", backbone, tiny_taxonomy(), {"members": [INTCLIP, RIDGE]}).eval() for _ in "ab"
    )
    one.prepare([(features, targets)])
    assert not [key for key in one.own_state() if "backbone" in key]
    other.load_own_state(one.own_state())
    torch.testing.assert_close(other(features).logits, one(features).logits)


def test_a_member_whose_size_the_photos_decide_is_loaded() -> None:
    backbone = TinyBackbone()
    pixels = torch.randn(7, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    features, targets = backbone.features(pixels, ("pooled", "regions")), torch.eye(7, 5)
    members = {"members": [{"method": "linear_probe"}, {"method": "tip_adapter"}]}
    one, other = (build_method("ensemble", backbone, tiny_taxonomy(), members).eval() for _ in "ab")
    one.prepare([(features, targets)])
    other.load_own_state(one.own_state())
    torch.testing.assert_close(other(features).logits, one(features).logits)
    with pytest.raises(KeyError, match=r"members\.1\.values"):
        other.load_own_state({key: value for key, value in one.own_state().items() if not key.endswith("values")})


def test_members_over_towers_of_their_own_share_features_and_go_into_a_bundle(tmp_path) -> None:
    backbone = load_backbone("lite+lite2")
    taxonomy = tiny_taxonomy()
    members = [INTCLIP | {"tower": "lite2"}, INTCLIP | {"tower": "lite"}]
    method = build_method("ensemble", backbone, taxonomy, {"members": members})
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    features = backbone.features(pixels, method.needs)
    assert features.keys() == {"trunk", "regions"}
    sum(method.training_loss([features], torch.eye(5)[:2]).values()).backward()
    wanting = [name for name, each in method.named_parameters() if each.requires_grad and each.grad is None]
    assert wanting == []
    first, second = (sum(p.numel() for p in each.semantic.parameters()) for each in method.members)
    assert first > second  # lite2's deep layers are the larger ones
    method.eval()
    save_bundle(tmp_path / "b", method, thresholds=0.5)
    again = load_bundle(tmp_path / "b").build_method()
    torch.testing.assert_close(again(features).logits, method(features).logits)
    assert not [key for key in method.own_state() if "backbone" in key or "whole" in key]


def test_a_member_that_reads_stages_reads_those_of_all_towers() -> None:
    staged = {"method": "query2label", "tower": "lite", "options": {"visual": {"train": "none"}}}
    with pytest.raises(RecipeError, match=r"query2label.*lite"):
        build_method("ensemble", load_backbone("lite+lite2"), tiny_taxonomy(), {"members": [staged, INTCLIP]})


def test_one_member_and_losses_that_do_not_add_are_refused() -> None:
    with pytest.raises(RecipeError, match="members"):
        build_method("ensemble", TinyBackbone(), tiny_taxonomy(), {"members": [INTCLIP]})
    summed = {"method": "intclip", "options": INTCLIP["options"] | {"loss": {"reduction": "sum"}}}
    with pytest.raises(RecipeError, match=r"loss\.reduction"):
        build_method("ensemble", TinyBackbone(), tiny_taxonomy(), {"members": [RIDGE, summed]})
