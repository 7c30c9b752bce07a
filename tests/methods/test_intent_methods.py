"""Intentonomy's baseline, PIP-Net, CPAD, HLEG and LabCR: the contract, end to end, and trained and predicted with."""

from pathlib import Path

import pytest
import torch
from colours import check_round_trip
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import RecipeError
from intclip.methods.base import Method
from intclip.methods.registry import build_method

DECODER = {"dim": 8, "heads": 2, "feedforward": 12}
FROZEN = {"train": "none", "space": "joint"}
WHERE = {"objects": ["class 0", "class 1"], "contexts": ["class 2"]}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "intentonomy": ("intentonomy", WHERE),
    "intentonomy hashtags": ("intentonomy", {**WHERE, "hashtags": True, "text_dropout": 0}),
    "pipnet": ("pipnet", {"prototypes": 2}),
    "cpad": ("cpad", {"dim": 8}),
    "cpad frozen, equal": ("cpad", {"dim": 8, "train": "none", "weighting": "equal", "alignment": 0, "levels": 1}),
    "hleg": ("hleg", {"decoder": DECODER, "levels": "sum"}),
    "hleg frozen": ("hleg", {"decoder": DECODER, "levels": "sum", "visual": FROZEN}),
    "hleg text": ("hleg", {"decoder": DECODER, "levels": "sum", "queries": "text"}),
    "labcr": ("labcr", {"decoder": DECODER}),
    "labcr text": ("labcr", {"decoder": DECODER, "queries": "text", "visual": FROZEN}),
}


def built(variant: str, backbone: TinyBackbone, classes: int = 5) -> Method:
    torch.manual_seed(1)
    name, options = VARIANTS[variant]
    return build_method(name, backbone, tiny_taxonomy(classes), options)


def batch(method: Method, images: int = 6, seed: int = 0) -> tuple[Features, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, 24, 24, generator=generator)
    targets = (torch.rand(images, len(method.taxonomy), generator=generator) < 0.4).float()
    targets[1] = 1
    targets[0, 0] = float("nan")
    features = method.backbone.features(pixels, method.needs)
    if "mask" in method.beside:
        features["mask"] = torch.rand(images, 1, 24, 24, generator=generator)
        features["mask"][2] = torch.nan
    if "text" in method.beside:
        features["text"] = torch.randn(images, 8, generator=generator)
    return features, targets


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets), batch(method, seed=1)])
    before = {key: value.clone() for key, value in tiny_backbone.state_dict().items()}
    terms = method.train().training_loss([features] * method.views, targets)
    assert all(term.isfinite() and term.ndim == 0 for term in terms.values())
    method.after_step()
    method.after_epoch(1)
    for key, value in tiny_backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    method.eval()
    with torch.no_grad():
        shown, again = method(features, maps=True), method(features)
        alone = method({name: features[name] for name in method.needs})
    assert shown.logits.shape == alone.logits.shape == (6, 5)
    torch.testing.assert_close(shown.logits, again.logits)
    assert list(shown.maps) == ["fused"]
    # The tiny backbone's own last stage is one region.
    assert shown.maps["fused"].shape[2:] == ((1, 1) if variant.startswith("cpad frozen") else (3, 3))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_what_should_learn_and_nothing_else(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    method.train()
    grouped = [parameter for group in method.parameter_groups() for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, method.learnable_parameters()))
    assert grouped
    assert not any("backbone." in key for key in method.own_state())
    other = {name: value + 0.1 * torch.randn_like(value) for name, value in features.items()}
    optimizer = torch.optim.SGD(grouped, lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        terms = method.training_loss([features, other][: method.views], targets)
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key
            assert key.startswith("backbone."), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_trains_and_scores_as_single_does(
    variant: str, dtype: torch.dtype, tiny_backbone: TinyBackbone
) -> None:
    found = []
    for enabled in (True, False):
        method = built(variant, tiny_backbone)
        features, targets = batch(method)
        method.prepare([(features, targets)])
        method.eval()  # no dropout
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = torch.stack(list(method.training_loss([features] * method.views, targets).values())).sum()
            logits = method(features).logits.float()
        torch.autograd.backward(loss)
        assert all(p.grad.isfinite().all() for p in method.learnable_parameters() if p.grad is not None)
        found.append((loss.detach(), logits.detach()))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "pipnet"])
def test_one_label_alone_works(variant: str, tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(1)
    name, options = VARIANTS[variant]
    alone = {key: value for key, value in options.items() if key not in WHERE}
    method = build_method(name, tiny_backbone, tiny_taxonomy(1), alone)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    terms = method.train().training_loss([features] * method.views, targets)
    assert torch.stack(list(terms.values())).sum().isfinite()
    assert method.eval()(features).logits.shape == (6, 1)


def test_pipnet_needs_two_classes(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(RecipeError, match="has one only; take linear_probe"):
        built("pipnet", tiny_backbone, classes=1)


@pytest.mark.parametrize("variant", ["intentonomy", "pipnet", "cpad", "hleg", "labcr"])
def test_own_state_makes_an_equal_method(variant: str, tiny_backbone: TinyBackbone) -> None:
    first, second = built(variant, tiny_backbone), built(variant, tiny_backbone)
    features, targets = batch(first)
    first.prepare([(features, targets)])
    with torch.no_grad():
        for parameter in first.learnable_parameters():
            parameter += torch.randn_like(parameter)
    second.load_own_state(first.own_state())
    torch.testing.assert_close(second.eval()(features).logits, first.eval()(features).logits)


@pytest.mark.parametrize("variant", ["intentonomy", "pipnet", "cpad", "hleg", "labcr"])
def test_train_save_load_predict(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_round_trip(*VARIANTS[variant], tmp_path, monkeypatch)
