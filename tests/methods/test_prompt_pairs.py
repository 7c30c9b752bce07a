"""PositiveCoOp, the vision-only baseline, DualCoOp++, SPARC and FDIL, compared with loops and limiting cases."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import RecipeError
from intclip.methods.base import Method
from intclip.methods.dualcoop_pp.model import region_scores
from intclip.methods.fdil.model import reranked
from intclip.methods.prompts import NEGATIVE, POSITIVE
from intclip.methods.registry import build_method
from intclip.methods.sparc.model import principal_directions


def built(backbone: TinyBackbone, name: str, classes: int = 5, **options: object) -> Method:
    torch.manual_seed(1)
    return build_method(name, backbone, tiny_taxonomy(classes), options).eval()


def photos(backbone: TinyBackbone, count: int = 6, seed: int = 0) -> Features:
    pixels = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return backbone.features(pixels, ("pooled", "regions", "trunk"))


@pytest.mark.parametrize("learned", ["positive", "negative"])
def test_one_half_is_a_prompt_with_an_offset_and_the_other_a_vector(learned: str, tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "positive_coop", context_length=3, learned=learned)
    text = method.prompts(tiny_backbone.text)
    read = method.prompts.learner.encode(tiny_backbone.text)[0] + method.prompts.offset
    place = POSITIVE if learned == "positive" else NEGATIVE
    torch.testing.assert_close(text[place], read)
    torch.testing.assert_close(text[1 - place], method.prompts.free)
    for vector in (method.prompts.free, method.prompts.offset):
        assert vector.shape == (5, 8)
        assert 0.6 < float(vector.detach().std()) < 1.4


def test_with_the_same_halves_positive_coop_is_dualcoop(tiny_backbone: TinyBackbone) -> None:
    ours = built(tiny_backbone, "positive_coop", context_length=3)
    theirs = built(tiny_backbone, "dualcoop", context_length=3)
    with torch.no_grad():
        ours.prompts.learner.context.copy_(theirs.prompts.context[POSITIVE:])
        ours.prompts.offset.zero_()
        ours.prompts.free.copy_(theirs.prompts.encode(tiny_backbone.text)[NEGATIVE])
    features = photos(tiny_backbone)
    torch.testing.assert_close(ours(features).logits, theirs(features).logits)


def test_positive_coop_trains_contexts_slowly_and_decays_nothing(tiny_backbone: TinyBackbone) -> None:
    groups = {g.name: g for g in built(tiny_backbone, "positive_coop", context_length=3).parameter_groups()}
    assert groups["prompts"].lr_multiplier == 0.01
    assert groups["free"].lr_multiplier == 1
    assert all(group.weight_decay_multiplier == 0 for group in groups.values())


def test_intclip_with_a_free_negative_is_positive_coop_behind_its_own_map(tiny_backbone: TinyBackbone) -> None:
    options = {"context_length": 3, "negative": "free", "branches": "single", "train": "none", "sentence_form": "fine"}
    ours = built(tiny_backbone, "intclip", **options)
    theirs = built(tiny_backbone, "positive_coop", context_length=3, period=False, pooling={"mean_region": False})
    theirs.prompts.load_state_dict(ours.prompts.state_dict())
    features = photos(tiny_backbone)
    torch.testing.assert_close(ours(features).logits, theirs(features).logits)
    with pytest.raises(RecipeError, match="text_residual"):
        built(tiny_backbone, "intclip", negative="free", text_residual=True)


def test_vision_only_equals_a_loop(tiny_backbone: TinyBackbone) -> None:
    method, features = built(tiny_backbone, "vision_only"), photos(tiny_backbone, 2)
    weight, bias = method.scores.weight, method.scores.bias
    for photo in range(2):
        regions = features["regions"][photo].flatten(1).T
        for label in range(5):
            halves = []
            for row in (label, 5 + label):  # negatives first
                scores = torch.stack([weight[row] @ region + bias[row] for region in regions])
                halves.append((scores.softmax(dim=0) * scores).sum())
            expected = 5 * (halves[1] - halves[0])
            torch.testing.assert_close(method(features).logits[photo, label], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("winner", ["share", "boost", "none"])
def test_dualcoop_pp_equals_a_loop(winner: str, tiny_backbone: TinyBackbone) -> None:
    method, features = built(tiny_backbone, "dualcoop_pp", context_length=3, winner=winner), photos(tiny_backbone, 2)
    negative, positive, evidence = F.normalize(method.prompts.encode(tiny_backbone.text), dim=2)
    logits = method(features, maps=True)
    for photo in range(2):
        regions = F.normalize(features["regions"][photo].flatten(1).T, dim=1)
        for label in range(5):
            weights = torch.stack([math.exp(3) * region @ evidence[label] for region in regions]).softmax(dim=0)
            scores = []
            for region in regions:
                cosines = torch.stack([region @ t for t in positive])
                share = (200 * cosines * cosines.max()).softmax(dim=0)[label]
                factor = {"share": share, "boost": 1 + share, "none": 1.0}[winner]
                scores.append(math.exp(3) * (factor * cosines[label] - region @ negative[label]))
            found = torch.stack(scores)
            torch.testing.assert_close(logits.logits[photo, label], weights @ found, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(logits.maps["sight"][photo, label].flatten(), found, rtol=1e-3, atol=1e-3)


def test_a_class_that_wins_a_region_keeps_its_similarity_and_the_others_lose_theirs() -> None:
    positive = torch.tensor([0.9, 0.5, 0.1])[None, :, None]
    scores = region_scores(positive, torch.zeros(1, 3, 1), "share").flatten()
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.0, 0.0]))
    # Equal similarities have equal shares; if all are below 0, the smallest wins the competition.
    even = region_scores(torch.full((1, 3, 1), 0.6), torch.zeros(1, 3, 1), "share")
    torch.testing.assert_close(even, torch.full((1, 3, 1), 0.2))


def sparc_reference(method: Method, features: Features) -> Tensor:
    """SPARC as in its paper and code, photo by photo, with numpy."""
    image = F.normalize(features["pooled"], dim=1).numpy()
    single, names = image @ method.single.numpy().T, image @ method.names.numpy().T
    compound = image @ method.compound.numpy().T
    singles, compounds = [], []
    for a, b, c in zip(single, names, compound, strict=True):
        singles.append((a - a.mean()) / a.std(ddof=1))
        compounds.append((c - b.mean()) / b.std(ddof=1))
    first, second = np.stack(singles), np.stack(compounds)
    first = (first - first.mean(0)) / first.std(0, ddof=1)
    second = (second - second.mean(0)) / second.std(0, ddof=1)
    scores = []
    for label, members in enumerate(method.members.tolist()):
        table = np.column_stack([np.sort(second[:, members], axis=1), first[:, label]])
        values, vectors = np.linalg.eigh(np.cov(table.T))
        direction = vectors[:, values.argmax()]
        direction = direction * np.sign(direction.mean()) / np.abs(direction).sum()
        scores.append(0.5 * table @ direction + 0.5 * first[:, label])
    return torch.from_numpy(np.column_stack(scores)).float()


def test_sparc_equals_its_reference_and_keeps_its_statistics(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "sparc", partners=3)
    features = photos(tiny_backbone, 40)
    rows = torch.arange(40).split(16)
    method.prepare(
        [({k: v[part] for k, v in features.items()}, torch.full((len(part), 5), torch.nan)) for part in rows]
    )
    expected = 2 * (sparc_reference(method, features) - 1.5)
    torch.testing.assert_close(method(features).logits, expected, rtol=1e-3, atol=1e-3)
    assert set(method.own_state()) == {"means", "deviations", "directions"}
    torch.testing.assert_close(method.directions.abs().sum(dim=1), torch.ones(5))
    # A single photo is scored with the statistics of the reference photos, not its own.
    torch.testing.assert_close(
        method({k: v[:1] for k, v in features.items()}).logits, expected[:1], rtol=1e-3, atol=1e-3
    )


def test_every_label_of_sparc_has_compound_prompts_that_name_it(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "sparc", partners=2)
    assert method.members.shape == (5, 2)
    words = method.taxonomy.sentences("fine")
    for label, members in enumerate(method.members.tolist()):
        for member in members:
            made = [
                tiny_backbone.embed_texts([f"{words[min(label, other)]} and {words[max(label, other)]}"])[0]
                for other in range(5)
                if other != label
            ]
            assert any(torch.allclose(method.compound[member], text, atol=1e-5) for text in made)


def test_sparc_without_partners_is_the_calibrated_single_score(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "sparc", partners=0)
    features = photos(tiny_backbone, 30)
    method.prepare([(features, torch.zeros(30, 5))])
    single = F.normalize(features["pooled"], dim=1) @ method.single.T
    z = (single - single.mean(dim=1, keepdim=True)) / single.std(dim=1, keepdim=True)
    z = (z - z.mean(dim=0)) / z.std(dim=0)
    torch.testing.assert_close(method(features).logits, 2 * (z - 1.5), rtol=1e-3, atol=1e-3)


def test_a_principal_direction_is_that_of_the_largest_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(500, 1, 1, generator=generator)
    scores = hidden * torch.tensor([3.0, 1.0, 0.0]) + 0.01 * torch.randn(500, 2, 3, generator=generator)
    expected = torch.tensor([0.75, 0.25, 0.0]).expand(2, 3)
    torch.testing.assert_close(principal_directions(scores), expected, rtol=0, atol=5e-3)


def test_rerank_equals_a_loop_and_leaves_the_others() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, scores = torch.randn(4, 7, generator=generator), torch.randn(4, 3, 7, generator=generator)
    found = reranked(logits, scores, weight=0.3, best=5)
    for photo in range(4):
        order = logits[photo].argsort(descending=True)[:5].tolist()
        for label in range(7):
            expected = logits[photo, label]
            if label in order:
                z = [(row[label] - row.mean()) / row.std(correction=0) for row in scores[photo]]
                expected = expected + 0.3 * sum(z) / 3
            torch.testing.assert_close(found[photo, label], expected)
    torch.testing.assert_close(reranked(logits, scores, weight=0.0, best=5), logits)


def test_fdil_without_rerank_and_teacher_is_the_mlp_probe(tiny_backbone: TinyBackbone) -> None:
    ours = built(tiny_backbone, "fdil", rerank=0, distillation=0)
    theirs = built(tiny_backbone, "mlp_probe")
    theirs.layers.load_state_dict(ours.student.state_dict())
    features = photos(tiny_backbone)
    torch.testing.assert_close(ours(features).logits, theirs(features).logits)
    assert ours.extra_inputs == ()


def test_fdil_learns_from_a_teacher_of_the_words_where_there_are_any(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "fdil", dropout=0).train()
    features = photos(tiny_backbone, 4)
    targets = torch.tensor([[1.0, 0, 0, 1, 0]]).expand(4, 5).clone()
    text = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    text[1] = 0
    terms = method.training_loss([features | {"text": text}], targets)
    with_words = [0, 2, 3]
    teacher, student = method.teacher(text), method.student(method.input(features))
    taught = F.binary_cross_entropy_with_logits(
        student[with_words], teacher[with_words].sigmoid().detach(), reduction="sum"
    )
    torch.testing.assert_close(terms["distillation"], taught / 4)
    alone = method.options.loss(teacher[with_words], targets[with_words])
    torch.testing.assert_close(terms["teacher"], alone * 3 / 4)
    assert set(method.training_loss([features], targets)) == {"classification"}
    assert set(method.eval().loss(method(features | {"text": text}), targets)) == {"classification"}
    # The student's own loss does not include reranking.
    torch.testing.assert_close(terms["classification"], method.options.loss(student, targets))
