"""IntCLIP's label graph and hierarchy: absent if off, and equal to their equations if on."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import RecipeError
from intclip.labels import load_taxonomy
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.hierarchy_loss import Hierarchy, HierarchyOptions, lift, reduce
from intclip.methods.intclip.model import IntCLIP, IntclipOptions
from intclip.methods.label_graph import count_labels
from intclip.methods.logit_graph import LogitGraph, LogitGraphOptions, exclusion_adjacency
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_pooling import PoolingOptions


def tiny(backbone: TinyBackbone, **options: object) -> IntCLIP:
    torch.manual_seed(0)
    return IntCLIP(backbone, tiny_taxonomy(), IntclipOptions.model_validate({"context_length": 3, **options}))


def photos(backbone: TinyBackbone, method: IntCLIP, images: int = 8) -> tuple[Features, Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(images, 5, generator=generator) < 0.4).float()
    return backbone.features(torch.randn(images, 3, 24, 24, generator=generator), method.needs), targets


def test_parameters_count_only_when_they_are_on(tiny_backbone: TinyBackbone) -> None:
    def learnable(**options: object) -> int:
        groups = tiny(tiny_backbone, **options).parameter_groups()
        return sum(parameter.numel() for group in groups for parameter in group.parameters)

    plain = learnable()  # what the paper's counts are of, see test_intclip.py
    assert learnable(graph={}) == plain + 2
    assert learnable(hierarchy={}) == plain + 2 * 2 * 3 * tiny_backbone.text.width  # halves, parents, contexts


def test_both_start_as_the_model_without_them(tiny_backbone: TinyBackbone) -> None:
    plain, both = tiny(tiny_backbone), tiny(tiny_backbone, graph={"threshold": 0.1}, hierarchy={})
    features, targets = photos(tiny_backbone, plain)
    both.prepare([(features, targets)])
    assert both.graph is not None
    assert both.graph.cooccurrence.sum() > 0
    torch.testing.assert_close(both.eval()(features).logits, plain.eval()(features).logits)
    assert set(both.train().loss(both(features), targets)) == {"classification", "consistency", "parents"}
    assert set(plain.train().loss(plain(features), targets)) == {"classification"}
    assert "parent_logits" not in both.eval()(features).extras  # a trained model does not use parents


def test_a_message_is_what_the_equation_says() -> None:
    graph = LogitGraph(3, LogitGraphOptions())
    graph.cooccurrence.copy_(torch.tensor([[0.0, 0.5, 0.5], [0, 0, 0], [1, 0, 0]]))
    graph.exclusion.copy_(torch.tensor([[0.0, 0, 0], [0, 0, 1], [0, 1, 0]]))
    graph.frequency.copy_(torch.tensor([0.2, 0.3, 0.4]))
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(graph(logits), logits)
    with torch.no_grad():
        graph.strengths.copy_(torch.tensor([2.0, 3.0]))
    p = logits.sigmoid()
    first = logits[:, 0] + 2 * (0.5 * (p[:, 1] - 0.3) + 0.5 * (p[:, 2] - 0.4))
    second = logits[:, 1] - 3 * p[:, 2]
    third = logits[:, 2] + 2 * (p[:, 0] - 0.2) - 3 * p[:, 1]
    torch.testing.assert_close(graph(logits), torch.stack([first, second, third], dim=1))


def test_neighbours_are_found_in_the_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    free = (torch.rand(400, 2, generator=generator) < 0.5).float()  # 0 and 1: independent
    brings = free[:, :1] * (torch.rand(400, 1, generator=generator) < 0.5)  # 2: only with 0, half of its photos
    away = (1 - free[:, 1:]) * (torch.rand(400, 1, generator=generator) < 0.8)  # 3: never with 1
    rare = torch.zeros(400, 1)
    rare[:4] = 1 - free[:4, 1:]  # 4: never with 1 either, but too rare to tell
    targets = torch.cat([free, brings, away, rare], dim=1)
    targets[7] = float("nan")
    graph = LogitGraph(5, LogitGraphOptions(threshold=0.8))
    graph.fit(targets.split(100))
    assert graph.cooccurrence[0, 2] > 0  # 2 brings 0 along
    assert graph.cooccurrence[2, 0] == 0  # and 0 only half of the time 2
    assert graph.cooccurrence.diagonal().sum() == 0
    edges = exclusion_adjacency(count_labels([targets], 5), ratio=0.2, min_expected=5)
    torch.testing.assert_close(graph.exclusion, edges)
    assert sorted(map(tuple, edges.nonzero().tolist())) == [(1, 3), (3, 1)]
    assert edges.sum() == 2
    torch.testing.assert_close(graph.frequency, targets.nanmean(dim=0))


def test_half_of_the_labels_hidden_at_random_gives_the_same_exclusions() -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.eye(3)[torch.randint(3, (600,), generator=generator)]  # no two labels ever together
    hidden = torch.rand(600, 3, generator=generator) < 0.5
    graphs = [LogitGraph(3, LogitGraphOptions(min_expected=12)) for _ in "ab"]
    for graph, targets in zip(graphs, (whole, whole.masked_fill(hidden, torch.nan)), strict=True):
        graph.fit([targets])
    # The expected count of a pair is 600 / 9 photos, with both labels known on a quarter.
    torch.testing.assert_close(graphs[0].exclusion, (1 - torch.eye(3)) / 2)
    torch.testing.assert_close(graphs[1].exclusion, graphs[0].exclusion)
    torch.testing.assert_close(graphs[1].frequency, torch.full((3,), 1 / 3), atol=0.06, rtol=0)


@pytest.mark.parametrize("rule", ["max", "noisy-or", "sum"])
def test_lifting_is_the_taxonomys(rule: str) -> None:
    taxonomy = load_taxonomy("intentonomy")
    generator = np.random.default_rng(0)
    values = generator.random((20, 28)).astype(np.float32)
    values[generator.random((20, 28)) < 0.1] = 1
    values[generator.random((20, 28)) < 0.05] = np.nan
    for level in list(taxonomy.levels)[1:]:
        membership = torch.from_numpy(taxonomy.membership(level))
        expected = torch.from_numpy(taxonomy.lift(values, level, rule))
        torch.testing.assert_close(lift(torch.from_numpy(values), membership, rule), expected, equal_nan=True)


@pytest.mark.parametrize("rule", ["max", "noisy-or", "sum"])
@pytest.mark.parametrize("reduction", ["sum", "batch", "mean"])
def test_consistency_is_nothing_exactly_where_parents_follow_from_children(
    rule: str, reduction: str, tiny_backbone: TinyBackbone
) -> None:
    options = {"hierarchy": {"rule": rule, "consistency": 2, "parents": 0.5}, "loss": {"reduction": reduction}}
    method = tiny(tiny_backbone, **options)
    assert method.hierarchy is not None
    children, targets = torch.randn(6, 5) - 2, torch.zeros(6, 5)
    targets[:, 1] = 0.4
    told = torch.from_numpy(tiny_taxonomy().lift(children.sigmoid().numpy(), "group", rule))
    terms = method.hierarchy.losses(children, torch.logit(told), targets, method.options.loss)
    torch.testing.assert_close(terms["consistency"], torch.tensor(0.0), atol=1e-9, rtol=0)
    above = torch.tensor([[0.0, 0.4]]).expand(6, -1)
    torch.testing.assert_close(terms["parents"], 0.5 * method.options.loss(torch.logit(told), above))
    moved = (0.5 * told).clamp(max=0.9)
    terms = method.hierarchy.losses(children, torch.logit(moved), targets, method.options.loss)
    torch.testing.assert_close(terms["consistency"], 2 * reduce((moved - told) ** 2, reduction), atol=1e-6, rtol=1e-4)
    plain = {"sum": 6 * 2, "batch": 2, "mean": 1}[reduction]
    torch.testing.assert_close(reduce(torch.ones(6, 2), reduction), torch.tensor(float(plain)))


def test_labels_that_exclude_each_other_are_consistent_by_their_softmax_level_by_level(
    tiny_backbone: TinyBackbone,
) -> None:
    taxonomy = replace(load_taxonomy("intentonomy"), exclusive=True)
    options = HierarchyOptions(rule="sum")
    hierarchy = Hierarchy(tiny_backbone.text, taxonomy, options, PoolingOptions(bias=True), context_length=1)
    assert set(hierarchy.state_dict()) == {"prompts.context", "pooling.bias"}  # not what the taxonomy has
    assert len(hierarchy.pooling.bias) == len(hierarchy.names)
    children, targets, loss = torch.randn(6, 28), torch.eye(28)[:6], LossOptions(kind="softmax", reduction="mean")
    told = [torch.from_numpy(taxonomy.lift(children.softmax(dim=1).numpy(), level, "sum")) for level in (1, 2)]
    parents = torch.cat([told[0].log() + 3, told[1].log() - 2], dim=1)  # a softmax knows no common shift
    terms = hierarchy.losses(children, parents, targets, loss)
    torch.testing.assert_close(terms["consistency"], torch.tensor(0.0), atol=1e-9, rtol=0)
    even = hierarchy.losses(children, torch.zeros_like(parents), targets, loss)
    expected = torch.cat([1 / told[0].shape[1] - told[0], 1 / told[1].shape[1] - told[1]], dim=1).square().mean()
    torch.testing.assert_close(even["consistency"], expected)


def test_every_added_parameter_learns(tiny_backbone: TinyBackbone) -> None:
    method = tiny(tiny_backbone, graph={"threshold": 0.1, "min_expected": 0.5, "exclusion_ratio": 0.9}, hierarchy={})
    features, targets = photos(tiny_backbone, method)
    method.prepare([(features, targets)])
    method.train()
    sum(method.loss(method(features), targets).values()).backward()
    grouped = {group.name: group.parameters for group in method.parameter_groups()}
    assert set(grouped) == {"prompts", "deep", "aggregation", "graph", "hierarchy"}
    assert method.graph is not None
    assert method.graph.strengths.grad is not None
    assert (method.graph.strengths.grad != 0).all()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in grouped["hierarchy"])
    assert sorted(map(id, method.learnable_parameters())) == sorted(id(p) for ps in grouped.values() for p in ps)


def test_a_flat_taxonomy_has_no_hierarchy(tiny_backbone: TinyBackbone) -> None:
    content = tiny_taxonomy().to_dict()
    content["levels"], content["parents"] = content["levels"][:1], {name: [] for name in tiny_taxonomy().names}
    with pytest.raises(RecipeError, match="tiny"):
        options = IntclipOptions.model_validate({"context_length": 3, "hierarchy": {}})
        IntCLIP(tiny_backbone, Taxonomy.from_dict(content), options)
