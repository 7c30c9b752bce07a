"""Parts of MCCL: initial prototypes, stages, gates, the graph, momentum, collapse."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import DatasetError, RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.mccl.stage import ChannelScale, Moments, Stage, sample_patches
from intclip.methods.prototypes import allocate
from intclip.methods.registry import build_method

SMALL = {"decoder": {"dim": 8, "heads": 2, "feedforward": 12}}


def mccl(backbone: TinyBackbone, pool: dict[str, object] | None = None, **options: object):
    torch.manual_seed(0)
    pool = {"prototypes": 20, "patches": 60} | (pool or {})
    return build_method("mccl", backbone, tiny_taxonomy(), {**SMALL, "pool": pool, **options}).eval()


def batches(method, photos: int = 30) -> list[tuple[Features, Tensor]]:
    """Label 0 in most photos, label 4 in few."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(photos, 3, 24, 24, generator=generator)
    chances = torch.tensor([0.9, 0.6, 0.5, 0.4, 0.1])
    targets = (torch.rand(photos, 5, generator=generator) < chances).float()
    features = method.backbone.features(pixels, method.needs)
    return [({k: v[i : i + 10] for k, v in features.items()}, targets[i : i + 10]) for i in range(0, photos, 10)]


def test_the_trunk_stands_in_for_a_stage_that_is_its_output(tiny_backbone: TinyBackbone) -> None:
    assert mccl(tiny_backbone, stages=[2, 4]).needs == ("trunk",)  # this trunk ends with stage 2
    assert mccl(tiny_backbone).needs == ("stage3", "trunk")
    assert mccl(tiny_backbone, train="none", stages=[1, 3]).needs == ("stage1", "stage3")
    pixels = torch.randn(3, 3, 24, 24)
    method = mccl(tiny_backbone, stages=[2, 4])
    for stage, expected in ((2, tiny_backbone.trunk(pixels)), (4, tiny_backbone.deep(tiny_backbone.trunk(pixels)))):
        got = method.patches(tiny_backbone.features(pixels, method.needs))[stage]
        torch.testing.assert_close(got, F.normalize(expected.permute(0, 2, 3, 1), dim=3))


def test_rare_classes_get_more_prototypes_and_each_its_own_patches(tiny_backbone: TinyBackbone) -> None:
    method = mccl(tiny_backbone, train="none", stages=[2, 3])
    data = batches(method)
    method.prepare(data)
    counts = torch.cat([targets for _, targets in data]).sum(dim=0)
    expected = allocate(counts.numpy(), 20).tolist()
    assert expected == sorted(expected)
    for stage in method.stages.values():
        assert torch.bincount(stage.pool.owner, minlength=5).tolist() == expected
        assert method.options.pool.rarity == 1
    equal = mccl(tiny_backbone, {"rarity": 0}, train="none", stages=[3])
    equal.prepare(batches(equal))
    assert torch.bincount(equal.stages[3].pool.owner).tolist() == [4] * 5


def test_a_prototype_is_the_mean_of_patches_of_its_class() -> None:
    torch.manual_seed(0)
    options = mccl(TinyBackbone(), {"prototypes": 5}).options.pool
    stage = Stage(6, 8, options)
    centres = F.normalize(torch.randn(5, 6), dim=1)
    points = centres[0] + 0.01 * torch.randn(9, 6)
    stage.place_prototypes([points, torch.empty(0, 6), centres[1:3]], [1, 2, 2], seed=0)
    torch.testing.assert_close(stage.pool.prototypes[0], points.mean(dim=0))
    assert stage.pool.owner.tolist() == [0, -1, -1, 2, 2]
    torch.testing.assert_close(stage.pool.prototypes[3:], centres[1:3])


def test_patches_are_drawn_at_the_asked_rate() -> None:
    torch.manual_seed(0)
    patches = torch.arange(200 * 9).float().view(200, 3, 3, 1)
    targets = torch.tensor([1.0, 0.5, float("nan")]).expand(200, 3)
    found = sample_patches(patches, targets, torch.tensor([2.5, 0.5, 9.0]))
    assert set(found) == {0, 1}
    assert 460 < len(found[0]) < 540
    assert 30 < len(found[1]) < 75
    assert len(found[0].unique()) == len(found[0])
    every = sample_patches(patches, torch.ones(200, 1), torch.tensor([50.0]))
    assert len(every[0]) == 200 * 9


def test_scales_are_those_of_the_training_set() -> None:
    torch.manual_seed(0)
    maps = 3 + 2 * torch.randn(20, 4, 3, 3)
    maps[:, 2] = 7
    moments, scale = Moments(), ChannelScale(4)
    for part in maps.permute(0, 2, 3, 1).split(7):
        moments.add(part)
    moments.give(scale)
    torch.testing.assert_close(scale.mean, maps.mean(dim=(0, 2, 3)))
    expected = maps.std(dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(scale.deviation, torch.where(expected > 1e-5, expected, torch.ones(4)))


def test_compositions_of_training_patches_are_centred_and_of_unit_deviation() -> None:
    torch.manual_seed(0)
    stage = Stage(6, 8, mccl(TinyBackbone(), {"prototypes": 5}).options.pool)
    patches = F.normalize(torch.rand(5000, 6), dim=1)
    stage.scale_compositions(patches)
    scaled = stage.composed_scale(stage.pool(patches))
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std(dim=0, correction=0), torch.ones(6))
    # The input of the projection, with the norm of a patch.
    maps = patches[:12].view(2, 2, 3, 6).permute(0, 3, 1, 2)
    expected = stage.norm(stage.project(scaled[:12] / 6**0.5)).view(2, 2, 3, 8).permute(0, 3, 1, 2)
    torch.testing.assert_close(stage(maps), expected)
    for composition, kept in (("add", patches[:12] + scaled[:12] / 6**0.5), ("none", patches[:12])):
        stage.composition = composition
        expected = stage.norm(stage.project(kept)).view(2, 2, 3, 8).permute(0, 3, 1, 2)
        torch.testing.assert_close(stage(maps), expected)


@pytest.mark.parametrize("initial", ["classes", "random"])
def test_prepare_scales_compositions_and_counts_none_as_seen(initial: str, tiny_backbone: TinyBackbone) -> None:
    method = mccl(tiny_backbone, {"initial": initial}, train="none", stages=[3])
    before = method.stages[3].pool.prototypes.clone()
    method.prepare(batches(method))
    stage = method.stages[3]
    assert stage.composed_scale.mean.abs().min() > 0
    assert (stage.composed_scale.deviation < 1).all()
    assert torch.equal(stage.pool.prototypes, before) == (initial == "random")
    assert stage.pool._seen is None


@pytest.mark.parametrize("gates", ["none", "learned", "photo"])
def test_gates_start_even_and_can_choose_a_stage(gates: str, tiny_backbone: TinyBackbone) -> None:
    method = mccl(tiny_backbone, train="none", stages=[1, 3], gates=gates)
    maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 8, 3, 3)]
    pooled = F.avg_pool2d(maps[0], 2)
    torch.testing.assert_close(method._fuse(maps), (pooled + maps[1]) / 2)
    with torch.no_grad():
        for gate in (method.gate, getattr(method.photo_gate, "bias", None)):
            if gate is not None:
                gate.copy_(torch.tensor([0.0, 3.0]).log1p())
                torch.testing.assert_close(method._fuse(maps), (pooled + 4 * maps[1]) / 5)
        if method.gate is not None:
            method.gate.copy_(torch.tensor([-40.0, 40.0]))
        if method.photo_gate is not None:
            method.photo_gate.bias.copy_(torch.tensor([-40.0, 40.0]))
    if gates != "none":
        torch.testing.assert_close(method._fuse(maps), maps[1])


def test_prepare_fills_the_graph_and_without_layers_leaves_it(tiny_backbone: TinyBackbone) -> None:
    method = mccl(tiny_backbone)
    method.prepare(batches(method))
    assert not torch.equal(method.adjacency, torch.eye(5))
    before = method.label_queries()
    method.adjacency.copy_(torch.eye(5))
    assert not torch.allclose(method.label_queries(), before)
    alone = mccl(tiny_backbone, graph_layers=0)
    alone.prepare(batches(alone))
    assert torch.equal(alone.adjacency, torch.eye(5))


def test_higher_momentum_moves_prototypes_less(tiny_backbone: TinyBackbone) -> None:
    moved = {}
    for momentum in (0.9, 0.99999):
        method = mccl(tiny_backbone, {"momentum": momentum})
        data = batches(method)
        method.prepare(data)
        before = method.stages[4].pool.prototypes.clone()
        method.train()
        for features, targets in data:
            method.training_loss([features], targets)
            method.after_step()
        moved[momentum] = float((method.stages[4].pool.prototypes - before).norm())
    assert 1000 < moved[0.9] / moved[0.99999] < 20_000


def test_a_collapse_is_told(tiny_backbone: TinyBackbone, caplog: pytest.LogCaptureFixture) -> None:
    method = mccl(tiny_backbone, {"collapse": 0.5})
    method.prepare(batches(method))
    with caplog.at_level(logging.WARNING):
        method.after_epoch(1)
        assert not caplog.records
        method.stages[4].pool.usage.zero_()[0] = 1
        method.after_epoch(2)
    assert "epoch 2: the prototypes of stage 4 have collapsed, 1.0 of 20 are in effective use" in caplog.text
    assert method.prototypes_in_use() == pytest.approx({3: 20.0, 4: 1.0})


def test_the_encoder_of_labels_is_a_choice(
    tiny_backbone: TinyBackbone, five_classes: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, nothing = mccl(tiny_backbone), mccl(tiny_backbone, text_encoder="random")
    assert not torch.allclose(own.label_text, nothing.label_text)
    monkeypatch.setattr("intclip.methods.mccl.model.load_backbone", lambda name: TinyBackbone(seed=len(name)))
    other = mccl(tiny_backbone, text_encoder="another")
    assert not torch.allclose(other.label_text, own.label_text)
    torch.testing.assert_close(other.label_text.square().mean(dim=1), torch.ones(5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": [4, 3]}, "stages.*mccl"),
        ({"stages": [2, 3]}, "deep.*stage 4"),
        ({"pool": {"prototypes": 4}}, "pool.prototypes 4.* 5"),
        ({"decoder": {}}, "mccl.*decoder.dim"),
    ],
)
def test_wrong_options_are_told(options: dict[str, object], message: str, tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(RecipeError, match=message):
        build_method("mccl", tiny_backbone, tiny_taxonomy(), {**SMALL, **options})


def test_a_split_without_labels_is_told(tiny_backbone: TinyBackbone) -> None:
    method = mccl(tiny_backbone)
    (features, targets), *_ = batches(method)
    with pytest.raises(DatasetError, match=r"label.*MCCL"):
        method.prepare([(features, torch.zeros_like(targets))])
