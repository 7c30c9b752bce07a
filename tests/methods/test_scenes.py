"""Labels scored through everyday scenes: the scenes, the formula against a slow reference, and its constants."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close

from intclip.backbones import load_backbone
from intclip.errors import IntclipError, RecipeError
from intclip.labels import load_taxonomy
from intclip.labels.reading import parse_taxonomy
from intclip.labels.scenes import expand, load_scenes
from intclip.methods.registry import build_method
from intclip.methods.zero_shot.scene_scoring import (
    DIRECT,
    OFFSET,
    SCALE,
    SHRINK,
    SLOPE,
    SceneScoring,
    scene_embeddings,
)
from intclip.training.lite_align import load_align_recipe


@pytest.fixture(scope="module")
def lite():
    return load_backbone("lite")


def embeddings(count, seed=0):
    return torch.randn(count, 384, generator=torch.Generator().manual_seed(seed))


def test_patterns_multiply():
    assert expand("a {red|blue} {car|bus}") == ["a red car", "a red bus", "a blue car", "a blue bus"]
    assert expand("a plain text") == ["a plain text"]


def test_scenes_are_distinct_and_cover_every_intent():
    bank = load_scenes()
    assert len(set(bank.texts)) == len(bank.texts) == len(bank.plausible) > 1000
    assert bank.intents == load_taxonomy("intentonomy").names
    assert (bank.plausible > 0).sum(axis=0).min() >= 20
    assert 2 < (bank.plausible > 0).sum(axis=1).mean() < 4
    assert bank.plausible[bank.texts.index("a latte with a heart drawn in the foam")].tolist().count(1.0) == 1
    assert bank.plausible.sum(axis=1).min() == 0  # no label is plausible for a blurry photo


def test_shipped_embeddings_are_those_of_the_scenes(lite):
    bank = load_scenes()
    places = list(range(0, len(bank.texts), 97))
    expected = lite.embed_texts([bank.texts[place] for place in places])
    assert_close(scene_embeddings(bank)[places], expected, rtol=0, atol=2e-3)


def test_judged_labels_are_the_expected_share_of_plausible_answers(lite):
    taxonomy = load_taxonomy("intentonomy")
    text = lite.embed_texts(taxonomy.sentences("11-15"))
    scoring = SceneScoring(lite, taxonomy, text)
    x = embeddings(3)
    bank, scenes = load_scenes(), scene_embeddings(load_scenes())
    for row, logits in zip(F.normalize(x, dim=1), scoring(x), strict=True):
        near = F.cosine_similarity((row - lite.image_moments[0])[None], scenes - scenes.mean(dim=0))
        weights = [math.exp(SCALE * value) for value in near.tolist()]
        for label in (0, 6, 27):
            share = sum(w * p for w, p in zip(weights, bank.plausible[:, label], strict=True)) / sum(weights)
            assert torch.sigmoid(logits[label]).item() == pytest.approx(max(share, 1e-4), rel=1e-3)


def test_other_labels_against_a_slow_reference(lite):
    taxonomy = parse_taxonomy(["dogs at play", "a quiet meal", "Enjoy life"], "test")
    text = lite.embed_texts(taxonomy.sentences("fine"))
    scoring = SceneScoring(lite, taxonomy, text)
    assert scoring.judged.tolist() == [False, False, True]
    scenes, (mean, covariance) = scene_embeddings(load_scenes()), lite.image_moments
    center = scenes.mean(dim=0)
    x = F.normalize(embeddings(1), dim=1)[0]
    near = F.cosine_similarity((x - mean)[None], scenes - center)
    weights = (SCALE * near).exp() / (SCALE * near).exp().sum()
    evidence, bases = [], []
    for label in text[:2]:
        cosines = scenes @ label
        z = (cosines - cosines.mean()) / cosines.std()
        plausible = 1 / (1 + (-(SLOPE * z + OFFSET)).exp())
        base = math.log(plausible.mean() / (1 - plausible.mean()))
        p = float(weights @ plausible)
        direction = F.normalize(label - center, dim=0)
        direct = (x @ direction - mean @ direction) / (direction @ covariance @ direction).sqrt()
        evidence.append(math.log(p / (1 - p)) - base + DIRECT * direct.item())
        bases.append(base)
    expected = [base + e - sum(evidence) / (2 + SHRINK) for base, e in zip(bases, evidence, strict=True)]
    assert_close(scoring(x)[:2], torch.tensor(expected), rtol=1e-3, atol=1e-3)


def test_of_a_longer_list_as_many_labels_are_plausible(lite):
    bank = load_scenes()
    text = scene_embeddings(bank)[:: len(bank.texts) // 280][:280]
    few, many = (
        SceneScoring(lite, parse_taxonomy(list(bank.texts[:count]), "test"), text[:count]) for count in (28, 280)
    )
    assert_close(few.prior, few.base)
    assert_close(many.prior, many.base - math.log(10))


def test_the_scale_is_that_of_the_training():
    assert load_align_recipe().logit_scale == SCALE


def test_slope_and_offset_are_what_judged_labels_get_from_their_sentences(lite):
    bank, taxonomy = load_scenes(), load_taxonomy("intentonomy")
    cosines = (scene_embeddings(bank) @ lite.embed_texts(taxonomy.sentences("11-15")).T).numpy()
    z = (cosines - cosines.mean(axis=0)) / cosines.std(axis=0)
    fitted = LogisticRegression(C=np.inf).fit(z.reshape(-1, 1), (bank.plausible > 0).reshape(-1))
    assert (fitted.coef_.item(), fitted.intercept_.item()) == pytest.approx((SLOPE, OFFSET), abs=0.01)


def test_maps_are_the_logits_of_single_regions(lite):
    method = build_method("zero_shot", lite, load_taxonomy("intentonomy"), {"scenes": True})
    pooled, regions = embeddings(2), embeddings(2 * 49, seed=1).view(2, 49, 384).transpose(1, 2).reshape(2, 384, 7, 7)
    output = method({"pooled": pooled, "regions": regions}, maps=True)
    assert output.maps["sight"].shape == (2, 28, 7, 7)
    assert_close(
        output.maps["sight"][1, :, 2, 3], method({"pooled": regions[1:, :, 2, 3]}).logits[0], atol=1e-4, rtol=0
    )


def test_towers_without_embedded_scenes_are_refused():
    with pytest.raises(RecipeError, match="RN50@random"):
        build_method("zero_shot", load_backbone("RN50@random"), load_taxonomy("sentiment3"), {"scenes": True})


@pytest.mark.parametrize("label", ["婚礼", "свадьба", "عرس"])
def test_labels_that_the_sentence_tower_cannot_read_are_refused(lite, label):
    taxonomy = parse_taxonomy(["a dog", label], "test")
    with pytest.raises(IntclipError, match=label):
        build_method("zero_shot", lite, taxonomy, {"sentence_form": "fine"})
    build_method("zero_shot", lite, parse_taxonomy(["café au lait", "party 🎉", "Größe"], "test"), {})
