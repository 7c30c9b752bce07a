"""SST's parts, compared with loops, and its pseudo labels for unknown labels."""

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


def test_gated_graph_equals_a_loop_with_the_reset_gate_before_the_product() -> None:
    torch.manual_seed(0)
    module, states, adjacency = GatedGraph(4, 2), torch.randn(2, 3, 4), torch.rand(3, 3)
    expected = states.clone()
    for _ in range(2):
        new = torch.zeros_like(expected)
        for b in range(2):
            for k in range(3):
                h = expected[b, k]
                ways = (adjacency[k], adjacency[:, k])
                message = torch.cat([sum(way[j] * expected[b, j] for j in range(3)) for way in ways])
                update, reset, state = (module.message.weight @ message + module.message.bias).split(4)
                own = module.gates.weight @ h + module.gates.bias
                z, r = torch.sigmoid(update + own[:4]), torch.sigmoid(reset + own[4:])
                proposed = torch.tanh(state + module.candidate.weight @ (r * h) + module.candidate.bias)
                new[b, k] = (1 - z) * h + z * proposed
        expected = new
    torch.testing.assert_close(module(states, adjacency), expected)


def test_pairs_are_a_network_of_both_features_stacked_with_a_classifier_each() -> None:
    torch.manual_seed(0)
    head, features = PairHead(4, 5, 3), torch.randn(2, 4, 5)
    logits = head(features)
    pairs = [(i, j) for i in range(4) for j in range(i + 1, 4)]
    assert logits.shape == (2, len(pairs))
    matrix = head.matrix(logits)
    targets = torch.tensor([[1, 0.5, NAN, 0], [1, 1, 1, 0]])
    for column, (i, j) in enumerate(pairs):
        both = torch.cat([head.project(features[:, i]), head.project(features[:, j])], dim=1)
        hidden = head.out(torch.relu(head.joint(both)))
        score = hidden @ head.score.weight[column] + head.score.bias[column]
        torch.testing.assert_close(logits[:, column], score)
        torch.testing.assert_close(matrix[:, i, j], logits[:, column].sigmoid())
        torch.testing.assert_close(matrix[:, j, i], matrix[:, i, j])
        expected = targets[:, i] * targets[:, j]
        torch.testing.assert_close(head.targets(targets)[:, column], expected, equal_nan=True)


def pair_losses(features: torch.Tensor, targets: torch.Tensor) -> dict[str, list[torch.Tensor]]:
    """Return 1 − cos of pairs that share a label, and 1 + cos of pairs where one or none has it."""
    found: dict[str, list[torch.Tensor]] = {"both": [], "one": [], "none": []}
    for k in range(targets.shape[1]):
        for m in range(len(targets)):
            for n in range(m + 1, len(targets)):
                a, b = targets[m, k], targets[n, k]
                if a.isnan() or b.isnan():
                    continue
                cosine = F.cosine_similarity(features[m, k], features[n, k], dim=0)
                kind = {0: "none", 1: "one", 2: "both"}[int(a + b)]
                found[kind].append(1 - cosine if kind == "both" else 1 + cosine)
    return found


def test_contrast_takes_every_pair_where_no_two_photos_share_a_label() -> None:
    torch.manual_seed(0)
    features, targets = torch.randn(4, 3, 5), torch.tensor([[1, 0, 0], [0, 1, NAN], [0, 0, 1], [0, 0, 0.0]])
    found = pair_losses(features, targets)
    assert not found["both"]
    everything = torch.stack(found["one"] + found["none"])
    torch.testing.assert_close(contrastive_loss(features, targets), everything.mean())
    unknown = contrastive_loss(features, torch.full((4, 3), NAN))
    assert float(unknown) == 0


def test_contrast_mines_the_hardest_pairs_and_as_many_random_ones_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 2, 5)
    targets = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, NAN]])
    found = {kind: torch.stack(losses) for kind, losses in pair_losses(features, targets).items()}
    assert len(found["both"]) == 1
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: torch.arange(count - 1, -1, -1))
    got = contrastive_loss(features, targets)
    # Pairs are ordered by photo, then by label.
    first, second = torch.triu_indices(8, 8, offset=1)
    cosines = F.cosine_similarity(features[first], features[second], dim=2)
    kinds = targets[first] + targets[second]
    taken = [found["both"]]
    for kind in (1, 0):
        losses = (1 + cosines)[kinds == kind]
        taken += [losses.flip(0)[:2], losses.sort(descending=True).values[:1]]
    torch.testing.assert_close(got, torch.cat(taken).mean())


def test_pairs_and_contrast_rise_over_the_first_epoch(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("sst", tiny_backbone, tiny_taxonomy(), QUICK)
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    targets = torch.tensor([1.0, 1, 0, 1, 0]).repeat(4, 1)
    method.prepare([(features, targets)] * 2)
    assert int(method.photos) == 8
    method.train()
    shares = []
    for epoch in range(2):
        for _ in range(2):
            terms = method.training_loss([features], targets)
            full = method.loss(method(features), targets)
            shares.append(float((terms["cooccurrence"] / full["cooccurrence"]).detach()))
        method.after_epoch(epoch + 1)
    assert shares == pytest.approx([0, 0.5, 1, 1])


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
    method.after_epoch(1)  # after it the terms have their full weight
    terms, extras = method.training_loss([features], targets), method(features).extras
    assert set(terms) == {"classification", "contrastive", "cooccurrence"}
    # All photos have the same labels, so few pairs lack a label in both, and all of these are used.
    torch.testing.assert_close(terms["contrastive"], 0.05 * contrastive_loss(extras["label_features"], targets))
    p, y = extras["pairs"].sigmoid(), torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 0, 0, 0])  # of 0, 1 and 3
    shifted = (p - 0.05).clamp_min(0)
    pairs = -(y * (1 - p) * p.log() + (1 - y) * shifted**2 * (1 - shifted).log()).mean()
    torch.testing.assert_close(terms["cooccurrence"], 10 * pairs)
    method.after_epoch(2)
    known = method.training_loss([features], targets)
    assert known["inter_pseudo"].item() == 0
    assert known["intra_pseudo"].item() == 0
    # Two photos, each twice: the first one's label 1 is unknown, and its copy has it.
    features = tiny_backbone.features(torch.randn(2, 3, 24, 24).repeat_interleave(2, dim=0), method.needs)
    targets[0, 1], targets[2:, 1] = NAN, 0
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
