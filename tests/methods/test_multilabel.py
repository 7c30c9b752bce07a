"""What MCCL, Query2Label, SST, the plain classifier and MultiGuard have in common: the contract, end to end."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from torch import Tensor

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.backbones.base import Features
from intclip.data.sample import Dataset, Sample
from intclip.methods.base import Method
from intclip.methods.registry import build_method
from intclip.training import load_recipe, train

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


def coloured_photos(folder: Path) -> Dataset:
    """Photos whose label k holds where channel k is bright."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[Sample]] = {}
    for split, count in (("train", 24), ("val", 10), ("test", 10)):
        splits[split] = []
        for i in range(count):
            labels = (rng.random(3) < 0.5).astype(np.float32)
            pixels = np.clip(60 + 140 * labels + rng.normal(0, 8, (26, 26, 3)), 0, 255).astype(np.uint8)
            path = folder / f"{split}{i}.png"
            Image.fromarray(pixels).save(path)
            splits[split].append(Sample(path.stem, labels, path))
    return Dataset("colours", tiny_taxonomy(3), "multilabel", splits)


@pytest.mark.parametrize("variant", ["mccl", "query2label", "sst", "asl_resnet", "multiguard mccl"])
def test_train_save_load_predict(variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    monkeypatch.setenv("INTCLIP_CACHE", "off")
    name, options = VARIANTS[variant]
    base = (
        "data.limit=null data.val=val data.test=test backbone.name=tiny optim.name=adamw optim.lr=0.01 "
        "schedule.epochs=2 train.batch_size=8 train.device=cpu train.workers=1 evaluate.bootstrap=0"
    )
    recipe = load_recipe("tiny", [*base.split(), f"method={{name: {name}, options: {options}}}"])
    dataset = coloured_photos(tmp_path)
    result = train(recipe, tmp_path / "run", dataset=dataset, progress=False)
    model = intclip.load(result.bundle, engine="torch")
    photos = [sample.image for sample in dataset.splits["test"]]
    predicted = np.stack([p.probabilities for p in model.predict(photos)])
    table = parquet.read_table(tmp_path / "run" / "predictions-test.parquet").to_pydict()
    trained = np.stack([table[label] for label in dataset.taxonomy.names], axis=1)
    np.testing.assert_allclose(predicted, trained, atol=1e-5)
    evidence = model.explain(photos[0], label="class 1")
    assert evidence.branches == ("fused",)
