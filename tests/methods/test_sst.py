"""SST's parts against loops, and its pseudo labels where labels are unknown."""

import pytest
import torch
import torch.nn.functional as F

from fakes import TinyBackbone, tiny_taxonomy
from intclip.methods.registry import build_method
from intclip.methods.sst.parts import (
    GatedGraph,
    PairHead,
    SemanticDecoupling,
    contrastive_loss,
    inter_pseudo_labels,
    intra_pseudo_labels,
)

NAN = float("nan")
QUICK = {"dim": 8, "margin": 0.3, "margin_floor": 0.3}


def test_semantic_decoupling_equals_a_loop() -> None:
    torch.manual_seed(0)
    module, regions, labels = SemanticDecoupling(6, 4, 5), torch.randn(2, 9, 6), torch.randn(3, 4)
    found, weights = module(regions, labels)
    for b in range(2):
        for k in range(3):
            scores = torch.cat(
                [
                    module.score(module.joint(torch.tanh(module.image(regions[b, n]) * module.words(labels[k]))))
                    for n in range(9)
                ]
            )
            torch.testing.assert_close(weights[b, k], scores.softmax(dim=0))
            torch.testing.assert_close(found[b, k], (scores.softmax(dim=0)[:, None] * regions[b]).sum(dim=0))


def test_gated_graph_is_torchs_gru_over_messages_of_both_directions() -> None:
    torch.manual_seed(0)
    module, states, adjacency = GatedGraph(4, 2), torch.randn(2, 3, 4), torch.rand(3, 3)
    cell = torch.nn.GRUCell(8, 4)
    weights = {"weight_ih": module.message.weight, "bias_ih": module.message.bias}
    cell.load_state_dict({**weights, "weight_hh": module.state.weight, "bias_hh": module.state.bias})
    expected = states.clone()
    for _ in range(2):
        new = torch.zeros_like(expected)
        for b in range(2):
            for k in range(3):
                ways = (adjacency[k], adjacency[:, k])
                message = torch.cat([sum(way[j] * expected[b, j] for j in range(3)) for way in ways])
                new[b, k] = cell(message, expected[b, k])
        expected = new
    torch.testing.assert_close(module(states, adjacency), expected)


def test_pairs_are_a_network_of_both_features_stacked() -> None:
    torch.manual_seed(0)
    head, features = PairHead(4, 5), torch.randn(2, 4, 5)
    logits = head(features)
    joint = torch.nn.Linear(10, 5)
    with torch.no_grad():
        joint.weight.copy_(torch.cat([head.left.weight, head.right.weight], dim=1))
        joint.bias.copy_(head.left.bias)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assert logits.shape == (2, len(pairs))
    matrix = head.matrix(logits)
    targets = torch.tensor([[1, 0.5, NAN, 0], [1, 1, 1, 0]])
    for column, (i, j) in enumerate(pairs):
        both = torch.cat([features[:, i], features[:, j]], dim=1)
        torch.testing.assert_close(logits[:, column], head.score(torch.relu(joint(both))).squeeze(1))
        torch.testing.assert_close(matrix[:, i, j], logits[:, column].sigmoid())
        torch.testing.assert_close(matrix[:, j, i], matrix[:, i, j])
        expected = targets[:, i] * targets[:, j]
        torch.testing.assert_close(head.targets(targets)[:, column], expected, equal_nan=True)


def test_contrast_equals_a_loop() -> None:
    torch.manual_seed(0)
    features = torch.randn(4, 3, 5)
    targets = torch.tensor([[1, 0, 1], [1, 1, NAN], [0, 0, 1], [0, 1, 0]])
    terms = []
    for k in range(3):
        for m in range(4):
            for n in range(4):
                a, b = targets[m, k], targets[n, k]
                if m == n or a.isnan() or b.isnan() or a + b == 0:
                    continue
                cosine = F.cosine_similarity(features[m, k], features[n, k], dim=0)
                terms.append(1 - cosine if a + b == 2 else 1 + cosine)
    torch.testing.assert_close(contrastive_loss(features, targets), torch.stack(terms).mean())
    assert float(contrastive_loss(features, torch.zeros(4, 3))) == 0


def test_pseudo_labels_fill_unknown_ones_only() -> None:
    targets = torch.tensor([[1, 1, NAN, NAN], [0, 0, NAN, 1], [NAN, 1, 0, 1]])
    together = torch.full((3, 4, 4), 0.1)
    together[0, 2, :2] = torch.tensor([0.9, 0.8])
    together[2, 0, 1] = 1.0  # its other positive, label 3, has 0.1
    got = intra_pseudo_labels(together, targets, 0.8)
    expected = torch.full((3, 4), NAN)
    expected[0, 2] = 1
    torch.testing.assert_close(got, expected, equal_nan=True)
    features = torch.eye(3)[:, None].expand(3, 4, 3).clone()
    features[2, 0] = features[0, 0]
    got = inter_pseudo_labels(features, targets, 0.8)
    expected = torch.full((3, 4), NAN)
    expected[2, 0] = 1  # looks like photo 0, the only one known to have label 0
    torch.testing.assert_close(got, expected, equal_nan=True)


def test_pseudo_losses_come_with_their_epoch_and_need_unknown_labels(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("sst", tiny_backbone, tiny_taxonomy(), {**QUICK, "pseudo_epoch": 2})
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    targets = torch.tensor([1.0, 1, 0, 1, 0]).repeat(4, 1)
    method.prepare([(features, targets)])
    torch.testing.assert_close(method.adjacency[0], torch.tensor([1.0, 1, 0, 1, 0]))
    method.train()
    terms, extras = method.training_loss([features], targets), method(features).extras
    assert set(terms) == {"classification", "contrastive", "cooccurrence"}
    torch.testing.assert_close(terms["contrastive"], 0.05 * contrastive_loss(extras["label_features"], targets))
    p, y = extras["pairs"].sigmoid(), torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 0, 0, 0])  # of 0, 1 and 3
    shifted = (p - 0.05).clamp_min(0)
    pairs = -(y * (1 - p) * p.log() + (1 - y) * shifted**2 * (1 - shifted).log()).mean()
    torch.testing.assert_close(terms["cooccurrence"], 10 * pairs)
    method.after_epoch(2)
    known = method.training_loss([features], targets)
    assert known["inter_pseudo"].item() == 0
    assert known["intra_pseudo"].item() == 0
    targets[0, 1] = NAN
    unknown = method.training_loss([features], targets)
    assert unknown["inter_pseudo"].item() > 0
    assert unknown["intra_pseudo"].item() > 0
    assert set(method.eval().loss(method(features), targets)) == {"classification"}


def test_the_margin_decays_to_its_floor(tiny_backbone: TinyBackbone) -> None:
    method = build_method("sst", tiny_backbone, tiny_taxonomy(), {"dim": 8})
    margins = []
    for epoch in (1, 5, 6, 9, 13, 20):
        method.after_epoch(epoch)
        margins.append(method.pseudo_margin())
    assert margins == pytest.approx([0.95, 0.95, 0.925, 0.85, 0.75, 0.75])
