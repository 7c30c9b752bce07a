"""Parts of the intent methods, compared with loops, autograd and closed forms."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.labels import load_taxonomy
from intclip.losses import asymmetric_loss_with_logits, soft_cross_entropy
from intclip.methods.hleg.model import HLEG
from intclip.methods.intentonomy.model import Intentonomy, activation_maps, localisation_loss
from intclip.methods.labcr.consistency import divided_consistency, relation_consistency, united_consistency
from intclip.methods.label_levels import coarser_targets, level_steps
from intclip.methods.pipnet.clustering import class_prototypes, diversity, diversity_step, matched, typical
from intclip.methods.registry import build_method

NAN = float("nan")
TARGETS = torch.tensor([[1, 0, 1, 0, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).float()


def two_views(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)


def cross(one: Tensor, other: Tensor) -> Tensor:
    return -(one * other.log()).sum()


def test_united_consistency_is_the_cross_entropy_of_sigmoids_both_ways() -> None:
    first, second = two_views()
    p, q = first.sigmoid(), second.sigmoid()
    torch.testing.assert_close(united_consistency(first, second), (cross(p, q) + cross(q, p)) / 4)


def test_divided_consistency_equals_a_loop_over_positives() -> None:
    first, second = (view.requires_grad_() for view in two_views())
    photos = []
    for z, w, y in zip(first, second, TARGETS, strict=True):
        rows = []
        for k in y.nonzero().flatten():
            members = [int(k), *(y == 0).nonzero().flatten().tolist()]
            p, q = z[members].softmax(0), w[members].softmax(0)
            rows.append(cross(p, q) + cross(q, p))
        photos.append(torch.stack(rows).mean() if rows else torch.zeros(()))
    found = divided_consistency(first, second, TARGETS)
    torch.testing.assert_close(found, torch.stack(photos).mean())
    expected = torch.autograd.grad(torch.stack(photos).mean(), [first, second], retain_graph=True)
    for got, wanted in zip(torch.autograd.grad(found, [first, second]), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_unknown_label_is_neither_positive_nor_negative() -> None:
    first, second = two_views()
    unknown = TARGETS[:2].clone()
    unknown[:, 4] = NAN
    found = divided_consistency(first[:2], second[:2], unknown)
    torch.testing.assert_close(found, divided_consistency(first[:2, :4], second[:2, :4], TARGETS[:2, :4]))


def test_relation_consistency_is_the_divergence_of_relations_both_ways() -> None:
    first, second = two_views()
    total = torch.zeros(())
    for i in range(4):
        others = [j for j in range(4) if j != i]
        shares = [
            torch.stack([F.cosine_similarity(view[i], view[j], dim=0) / 0.4 for j in others]).softmax(0)
            for view in (first, second)
        ]
        for p, q in (shares, shares[::-1]):
            total = total + (p * (p / q).log()).sum() / 4
    torch.testing.assert_close(relation_consistency(first, second, 0.4), total)
    assert relation_consistency(first, 3 * first, 0.4).abs() < 1e-6
    assert relation_consistency(first[:1], second[:1], 0.4) == 0


def test_labcr_adds_both_views_and_agrees_with_itself(tiny_backbone: TinyBackbone) -> None:
    decoder = {"dim": 8, "heads": 2, "dropout": 0}
    method = build_method("labcr", tiny_backbone, tiny_taxonomy(), {"decoder": decoder, "divided_gradient": False})
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    terms = method.train().training_loss([features, features], TARGETS)
    assert sorted(terms) == ["classification", "relation", "united"]
    once = method.loss(method(features), TARGETS)["classification"]
    torch.testing.assert_close(terms["classification"], 2 * once)
    assert terms["relation"].abs() < 1e-6


def test_labcr_weighs_its_terms_as_published(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("labcr", tiny_backbone, tiny_taxonomy(), {"decoder": {"dim": 8, "heads": 2, "dropout": 0}})
    views = [tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs) for _ in "ab"]
    terms = method.train().training_loss(views, TARGETS)
    first, second = (method(view) for view in views)
    states = (first.extras["states"].flatten(1), second.extras["states"].flatten(1))
    torch.testing.assert_close(terms["united"], 0.4 * united_consistency(first.logits, second.logits))
    torch.testing.assert_close(terms["divided"], 0.6 * divided_consistency(first.logits, second.logits, TARGETS))
    torch.testing.assert_close(terms["relation"], relation_consistency(*states, 0.4))


def test_coarser_targets_are_those_of_the_taxonomy() -> None:
    taxonomy = load_taxonomy("intentonomy")
    steps = level_steps(taxonomy)
    assert [tuple(step.shape) for step in steps] == [(28, 15), (15, 9)]
    rng = np.random.default_rng(0)
    votes = rng.choice([0, 0, 0, 1 / 3, 1, NAN], size=(40, 28)).astype(np.float32)
    found = torch.from_numpy(votes)
    for level, step in enumerate(steps, start=1):
        assert (step.sum(dim=1) == 1).all()
        found = coarser_targets(found, step)
        np.testing.assert_array_equal(found.numpy(), taxonomy.lift(votes, level))


def test_hleg_takes_the_worst_level_of_each_photo_and_a_tenth_of_the_finest(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    options = {"decoder": {"dim": 8, "heads": 2}}
    method = build_method("hleg", tiny_backbone, tiny_taxonomy(), options).eval()
    output = method(tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs))
    groups = torch.stack([TARGETS[:, 0::2].amax(1), TARGETS[:, 1::2].amax(1)], dim=1)
    output.extras["level 1"] = torch.tensor([[9.0, 9.0], [0, 0], [-9, -9], [0, 0]])  # wrong for the third photo
    per_level = [
        asymmetric_loss_with_logits(logits, y, gamma_pos=0, gamma_neg=2, margin=0, reduction="none").sum(1)
        for logits, y in ((output.logits, TARGETS), (output.extras["level 1"], groups))
    ]
    assert per_level[1][2] > per_level[0][2]
    terms = method.loss(output, TARGETS)
    torch.testing.assert_close(terms["levels"], torch.maximum(*per_level).mean())
    torch.testing.assert_close(terms["fine"], 0.1 * per_level[0].mean())


def test_hleg_groups_ask_with_the_mean_of_their_children(tiny_backbone: TinyBackbone) -> None:
    method = build_method("hleg", tiny_backbone, tiny_taxonomy(), {"decoder": {"dim": 8, "heads": 2}})
    assert isinstance(method, HLEG)
    states = torch.randn(2, 5, 8)
    expected = torch.stack([states[:, 0::2].mean(1), states[:, 1::2].mean(1)], dim=1)
    torch.testing.assert_close(method._mean_of_children(1, states), expected)


def test_hleg_states_start_from_the_regions(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("hleg", tiny_backbone, tiny_taxonomy(), {"decoder": {"dim": 8, "heads": 2}}).eval()
    given: list[Tensor] = []
    for layer in method.decoder.layers:
        layer.register_forward_pre_hook(lambda _, arguments: given.append(arguments[0]))
    features = tiny_backbone.features(torch.randn(2, 3, 24, 24), method.needs)
    method(features)
    regions, _ = method.decoder.encode(method.visual(tiny_backbone, features))
    for start, states in zip(method.starts, given, strict=True):
        sums = torch.einsum("kn,bnd->bkd", start.weight, regions) + start.bias[:, None]
        torch.testing.assert_close(states, 1 / (1 + torch.exp(-sums)))


def test_pipnet_probabilities_are_a_softmax_of_the_nearest_prototypes(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("pipnet", tiny_backbone, tiny_taxonomy(), {"prototypes": 2})
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    targets = TARGETS.clone()
    targets[:, 4] = 0
    method.prepare([(features, targets)])
    output = method.eval()(features)
    vectors = F.normalize(method.visual(tiny_backbone, features).mean(dim=(2, 3)), dim=1)
    nearest = torch.einsum("bc,kmc->bkm", vectors, method.prototypes).amax(2)
    nearest[:, 4] = -1  # no photo has it
    torch.testing.assert_close(output.logits.sigmoid(), (nearest / 0.15).softmax(1))
    expected = soft_cross_entropy(nearest / 0.15, targets, reduction="batch")
    torch.testing.assert_close(method.loss(output, targets)["classification"], expected)


def test_class_prototypes_are_the_centres_of_typical_photos() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(6)[:4]
    near = centres.repeat_interleave(10, dim=0) + 0.01 * torch.rand(40, 6, generator=generator)
    votes = torch.zeros(40, 3)
    votes[:20, 0], votes[20:, 1] = 1, 1 / 3  # class 1 has single votes alone, class 2 nothing
    found, made = class_prototypes(near, votes, 2, least_share=0.5, discard=0)
    assert made.tolist() == [True, True, False]
    for label in (0, 1):
        cosines = F.normalize(found[label], dim=1) @ centres[2 * label : 2 * label + 2].T
        assert sorted(cosines.argmax(1).tolist()) == [0, 1]
        assert cosines.amax(1).min() > 0.999
    assert found[2].abs().max() == 0


def test_what_is_least_like_the_mean_is_left_out() -> None:
    points = torch.tensor([[1.0, 0.1], [1, 0], [0, 1], [1, 0.2], [0.9, 0]])
    assert [0.0, 1.0] not in typical(points, torch.ones(5), 0.2).tolist()
    assert len(typical(points, torch.ones(5), 0.2)) == 4
    assert [0.0, 1.0] in typical(points, torch.tensor([0.01, 0.01, 1, 0.01, 0.01]), 0.2).tolist()


def test_matching_undoes_a_shuffle() -> None:
    old = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    shuffled = torch.stack([points[torch.randperm(4)] for points in old])
    torch.testing.assert_close(matched(shuffled, old), old)


def test_prototypes_take_in_a_little_of_the_clusters_they_are_most_like(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    options = {"prototypes": 2, "momentum": 0.75, "diversity": 0}
    method = build_method("pipnet", tiny_backbone, tiny_taxonomy(), options).eval()
    features = tiny_backbone.features(torch.randn(40, 3, 24, 24), method.needs)
    method.prepare([(features, torch.ones(40, 5))])
    clusters = method.prototypes.clone()  # nothing is trained, so each epoch finds the same clusters
    before = F.normalize(clusters.flip(1) + 0.3 * torch.randn_like(clusters), dim=2)
    method.prototypes.copy_(before)
    method.after_epoch(1)
    for old, new, found in zip(before, clusters, method.prototypes, strict=True):
        like = max((new[list(order)] for order in permutations(range(2))), key=lambda each: float((each * old).sum()))
        torch.testing.assert_close(found, F.normalize(0.75 * old + 0.25 * like, dim=1))


def test_diversity_is_least_for_orthogonal_means_and_a_step_lessens_it() -> None:
    torch.testing.assert_close(diversity(torch.eye(5)[:3, None].expand(3, 2, 5)), torch.tensor(math.sqrt(3)))
    torch.testing.assert_close(diversity(torch.ones(3, 2, 5)), torch.tensor(3.0))
    start = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(0))
    moved = diversity_step(start, 0.01)
    assert diversity(moved) < diversity(start)
    assert (moved - start).abs().max() < 0.0101


def test_cpad_reads_levels_from_coarse_to_fine(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("cpad", tiny_backbone, tiny_taxonomy(), {"dim": 8, "train": "none"}).eval()
    features = tiny_backbone.features(torch.randn(3, 3, 24, 24), method.needs)
    output = method(features)
    coarse = F.layer_norm(method.photos[1](features["stage3"].mean((2, 3))), (8,))
    fine = method.photos[0](features["stage4"].mean((2, 3))) + method.down[0](coarse.clamp_min(0))
    for level, state in enumerate((F.layer_norm(fine, (8,)), coarse)):
        words = method.words(method.get_buffer(f"text{level}"))
        cosines = F.cosine_similarity(state[:, None], words[None], dim=2) / 0.1
        torch.testing.assert_close(output.extras[f"cosines {level}"], cosines)
        torch.testing.assert_close(output.extras[f"level {level}"], method.heads[level](state) + cosines)
    torch.testing.assert_close(output.logits, output.extras["level 0"])


def test_cpad_weighs_losses_by_learned_uncertainty(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    made = {
        weighting: build_method("cpad", tiny_backbone, tiny_taxonomy(), {"dim": 8, "weighting": weighting}).eval()
        for weighting in ("dynamic", "equal")
    }
    dynamic = made["dynamic"]
    output = dynamic(tiny_backbone.features(torch.randn(4, 3, 24, 24), dynamic.needs))
    plain = made["equal"].loss(output, TARGETS)
    assert sorted(plain) == ["alignment_0", "alignment_1", "level_0", "level_1"]
    expected = soft_cross_entropy(output.extras["cosines 0"], TARGETS, reduction="batch")
    torch.testing.assert_close(plain["alignment_0"], expected)
    weighed = dynamic.loss(output, TARGETS)
    torch.testing.assert_close(weighed, plain)  # every s starts at 0
    with torch.no_grad():
        dynamic.uncertainty.copy_(torch.stack(list(plain.values())).log())
    total = torch.stack(list(dynamic.loss(output, TARGETS).values())).sum()
    (slope,) = torch.autograd.grad(total, [dynamic.uncertainty])
    torch.testing.assert_close(slope, torch.zeros(4), atol=1e-5, rtol=0)  # least at s = log loss


def test_activation_maps_are_grad_cam() -> None:
    torch.manual_seed(0)
    visual, weight = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(3, 4)
    logits = visual.mean(dim=(2, 3)) @ weight.T
    found = activation_maps(visual, weight)
    for k in range(3):
        (slope,) = torch.autograd.grad(logits[:, k].sum(), [visual], retain_graph=True)
        cam = F.relu((visual * slope.mean(dim=(2, 3), keepdim=True)).sum(dim=1))
        low, high = cam.amin(dim=(1, 2), keepdim=True), cam.amax(dim=(1, 2), keepdim=True)
        torch.testing.assert_close(found[:, k], (cam - low) / (high - low), atol=1e-5, rtol=1e-5)


def test_localisation_loss_counts_evidence_on_the_wrong_side() -> None:
    cams = torch.ones(3, 3, 2, 2)
    masks = torch.zeros(3, 1, 4, 4)
    masks[:, :, :2, :2] = 1  # the upper left quarter is object
    masks[2] = NAN
    positive = torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, 1]]).bool()
    objects, contexts = torch.tensor([0]), torch.tensor([1, 2])
    found = localisation_loss(cams, masks, positive, objects=objects, contexts=contexts)
    # Three of four regions are wrong for an object class, one for a context class: 3 for one object label, 1 / 2 for
    # each of three context labels, and four labels in the two photos that have a mask.
    torch.testing.assert_close(found, torch.tensor((3 + 3 * 1 / 2) / 4))


@pytest.mark.parametrize("gradient", [True, False])
def test_localisation_trains_unless_its_maps_are_detached(gradient: bool, tiny_backbone: TinyBackbone) -> None:
    options = {"objects": ["class 0"], "contexts": ["class 1"], "cam_gradient": gradient}
    method = build_method("intentonomy", tiny_backbone, tiny_taxonomy(), options).train()
    assert method.extra_inputs == ("mask",)
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    assert list(method.training_loss([features], TARGETS)) == ["classification"]
    masks = torch.rand(4, 1, 24, 24)
    terms = method.training_loss([features | {"mask": masks}], TARGETS)
    assert terms["localisation"] > 0
    cams = activation_maps(method(features).extras["visual"], method.head.weight)
    wrong = localisation_loss(cams, masks, TARGETS > 0, objects=torch.tensor([0]), contexts=torch.tensor([1]))
    torch.testing.assert_close(terms["localisation"], 0.1 * wrong)  # α of the paper
    assert terms["localisation"].requires_grad == gradient


def test_intentonomy_knows_its_object_and_context_classes(tiny_backbone: TinyBackbone) -> None:
    method = build_method("intentonomy", tiny_backbone, load_taxonomy("intentonomy"), {})
    assert isinstance(method, Intentonomy)
    assert method.get_buffer("object").tolist() == [0, 3, 10, 11, 12, 16, 23]
    assert method.get_buffer("context").tolist() == [7, 8]
    plain = build_method("intentonomy", tiny_backbone, tiny_taxonomy(), {})
    assert plain.extra_inputs == ()


def test_words_are_added_where_there_are_any(tiny_backbone: TinyBackbone) -> None:
    method = build_method("intentonomy", tiny_backbone, tiny_taxonomy(), {"hashtags": True}).eval()
    assert method.extra_inputs == ("text",)
    features = tiny_backbone.features(torch.randn(4, 3, 24, 24), method.needs)
    words = torch.randn(4, 8)
    words[3] = 0
    plain, read = method(features).logits, method(features | {"text": words}).logits
    torch.testing.assert_close(read - plain, words @ method.words.weight.T)
