"""What MCCL, Query2Label, SST, the plain classifier and MultiGuard have in common: the contract, end to end."""

from pathlib import Path

import pytest
import torch
from colours import check_round_trip
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.methods.base import Method
from intclip.methods.registry import build_method

DECODER = {"dim": 8, "heads": 2, "feedforward": 12}
MCCL = {"pool": {"prototypes": 12, "patches": 40}, "decoder": DECODER}
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "mccl": ("mccl", MCCL),
    "mccl frozen, gated": ("mccl", {**MCCL, "train": "none", "stages": [1, 2, 3], "gates": "photo"}),
    "mccl learned prototypes": ("mccl", {**MCCL, "gates": "learned", "pool": {**MCCL["pool"], "update": "gradient"}}),
    "mccl added": ("mccl", {**MCCL, "graph_layers": 0, "pool": {**MCCL["pool"], "composition": "add"}}),
    "mccl uncomposed": ("mccl", {**MCCL, "text_encoder": "random", "pool": {**MCCL["pool"], "composition": "none"}}),
    "query2label": ("query2label", {"decoder": DECODER}),
    "query2label text": (
        "query2label",
        {
            "decoder": {**DECODER, "self_attention": True},
            "queries": "text",
            "visual": {"train": "none", "space": "joint"},
        },
    ),
    "sst": ("sst", {"dim": 8}),
    "sst frozen": ("sst", {"dim": 8, "visual": {"train": "none", "space": "joint"}, "cooccurrence": 0}),
    "asl_resnet": ("asl_resnet", {}),
    "asl_resnet joint": ("asl_resnet", {"visual": {"space": "joint"}}),
    "multiguard": ("multiguard", {"sigma": 0.1}),
    "multiguard mccl": ("multiguard", {"sigma": 0.1, "samples": 2, "method": "mccl", "options": MCCL}),
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
    return method.backbone.features(pixels, method.needs), targets


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets), batch(method, seed=1)])
    before = {key: value.clone() for key, value in tiny_backbone.state_dict().items()}
    loss = sum(method.train().training_loss([features], targets).values())
    assert isinstance(loss, Tensor)
    assert loss.isfinite()
    assert loss.ndim == 0
    method.after_step()
    method.after_epoch(1)
    for key, value in tiny_backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    method.eval()
    with torch.no_grad():
        shown, again = method(features, maps=True), method(features)
    assert shown.logits.shape == (6, 5)
    torch.testing.assert_close(shown.logits, again.logits)
    assert list(shown.maps) == ["fused"]
    assert shown.maps["fused"].shape == (6, 5, 3, 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_what_should_learn_and_nothing_else(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    method.train()
    grouped = [parameter for group in method.parameter_groups() for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, method.learnable_parameters()))
    assert not any("backbone." in key for key in method.own_state())
    optimizer = torch.optim.SGD(grouped, lr=0.1)
    for _ in range(3):  # gates only matter once their inputs differ
        optimizer.zero_grad()
        torch.stack(list(method.training_loss([features], targets).values())).sum().backward()
        optimizer.step()
        method.after_step()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key
            assert "backbone." in key or "prototypes" in key, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_label_alone_works(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone, classes=1)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    assert sum(method.train().training_loss([features], targets).values()).isfinite()
    assert method.eval()(features).logits.shape == (6, 1)


@pytest.mark.parametrize("variant", ["mccl", "query2label", "sst", "asl_resnet", "multiguard mccl"])
def test_train_save_load_predict(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_round_trip(*VARIANTS[variant], tmp_path, monkeypatch)
