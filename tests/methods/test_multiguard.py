"""Certificates, compared with closed forms, an independent library and brute force; smoothing in limiting cases."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest, norm

from fakes import TinyBackbone, tiny_taxonomy
from intclip.errors import RecipeError
from intclip.methods.multiguard.certificate import certified_overlap, certified_radius, clopper_pearson
from intclip.methods.multiguard.smoothing import add_noise, smoothing
from intclip.methods.registry import build_method


@pytest.mark.parametrize("votes", [0, 1, 37, 99, 100])
def test_clopper_pearson_is_scipys_exact_interval(votes: int) -> None:
    lower, upper = clopper_pearson([votes], 100, 0.01)
    exact = binomtest(votes, 100).proportion_ci(confidence_level=0.98, method="exact")
    assert lower[0] == pytest.approx(exact.low, abs=1e-12)
    assert upper[0] == pytest.approx(exact.high, abs=1e-12)
    # By definition, the probability of at least (most) this many votes is α at the bounds.
    if votes:
        assert binom.sf(votes - 1, 100, lower[0]) == pytest.approx(0.01)
    if votes < 100:
        assert binom.cdf(votes, 100, upper[0]) == pytest.approx(0.01)


def test_all_votes_have_their_closed_form() -> None:
    lower, upper = clopper_pearson([50, 0], 50, 0.001)
    assert lower.tolist() == pytest.approx([0.001 ** (1 / 50), 0])
    assert upper.tolist() == pytest.approx([1, 1 - 0.001 ** (1 / 50)])


def test_bounds_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    lower, upper = clopper_pearson(rng.binomial(80, 0.3, 4000), 80, 0.05)
    assert (lower > 0.3).mean() <= 0.06
    assert (upper < 0.3).mean() <= 0.06


@pytest.mark.parametrize(("high", "low"), [(0.8, 0.2), (0.99, 0.01), (0.6, 0.55)])
def test_one_label_has_the_radius_of_randomised_smoothing(high: float, low: float) -> None:
    """Cohen et al. (2019): R = σ/2 (Φ⁻¹(p_A) − Φ⁻¹(p_B))."""
    bounds = np.array([high, low, 0.0])
    got = certified_radius(bounds, bounds, [True, False, False], k=1, votes=1, sigma=0.5, overlap=1)
    assert got == pytest.approx(0.25 * (norm.ppf(high) - norm.ppf(low)), abs=1e-9)


def test_without_noise_to_spare_the_certificate_is_counting() -> None:
    """At radius 0 with single labels, e true labels stay if the e-th beats the (k − e + 1)-th other one."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        chances, true, k = rng.random(7), rng.random(7) < 0.5, int(rng.integers(1, 8))
        got = certified_overlap(chances, chances, true, k=k, votes=7, sigma=1, radius=0)
        chosen = np.argsort(-chances)[:k]
        assert got == true[chosen].sum()


@pytest.mark.parametrize("votes", [1, 2])
def test_no_change_of_a_real_classifier_breaks_its_certificate(votes: int) -> None:
    """A classifier of one number, whose vote probabilities under noise are known exactly at every point."""
    rng = np.random.default_rng(votes)
    sigma, promised = 0.5, 0
    for _ in range(150):
        edges = np.concatenate([[-np.inf], np.sort(rng.normal(0, 0.7, 7)), [np.inf]])
        labels = np.stack([rng.permutation(5)[:votes] for _ in range(8)])

        def chances(x: float, edges=edges, labels=labels) -> np.ndarray:
            mass = np.diff(norm.cdf((edges - x) / sigma))
            return np.bincount(labels.ravel(), np.repeat(mass, votes), minlength=5)

        true, k, radius = rng.random(5) < 0.5, int(rng.integers(1, 4)), float(rng.choice([0.05, 0.15, 0.4]))
        here = chances(0.0)
        sure = certified_overlap(here, here, true, k=k, votes=votes, sigma=sigma, radius=radius)
        promised += sure
        for x in np.linspace(-radius, radius, 21):
            chosen = np.argsort(-chances(x), kind="stable")[:k]
            assert true[chosen].sum() >= sure
    assert promised > 40


def test_certificates_weaken_with_radius_and_doubt_and_fill_up() -> None:
    rng = np.random.default_rng(2)
    lower = rng.random(6) * 0.5
    true = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    radii = [0.0, 0.1, 0.2, 0.4, 0.8]
    arguments = {"k": 3, "votes": 3, "sigma": 0.5}
    sure = [certified_overlap(lower, lower + 0.01, true, radius=r, **arguments) for r in radii]
    assert sure == sorted(sure, reverse=True)
    doubtful = certified_overlap(lower, lower + 0.4, true, radius=0.1, **arguments)
    assert doubtful <= sure[1]
    assert certified_overlap(lower, lower, true, k=6, votes=3, sigma=0.5, radius=9) == 3  # there is room for all


@pytest.mark.parametrize("overlap", [1, 2])
def test_the_radius_is_where_the_overlap_ends(overlap: int) -> None:
    lower = np.array([0.9, 0.7, 0.2, 0.1])
    true = [True, True, False, False]
    arguments = {"k": 2, "votes": 2, "sigma": 0.3}
    radius = certified_radius(lower, lower + 0.02, true, overlap=overlap, **arguments)
    assert radius > 0
    assert certified_overlap(lower, lower + 0.02, true, radius=radius * 0.999, **arguments) >= overlap
    assert certified_overlap(lower, lower + 0.02, true, radius=radius * 1.001, **arguments) < overlap


def test_noise_is_added_to_values_from_0_to_1(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    photo = torch.rand(2, 3, 4, 4)
    noise = torch.randn(2, 3, 4, 4)
    noisy = add_noise((photo - 0.5) / 0.25, noise, tiny_backbone.preprocess, 0.3)
    torch.testing.assert_close(noisy * 0.25 + 0.5, (photo + 0.3 * noise).clamp(0, 1))


def test_votes_are_counted_and_repeatable(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    method = build_method("asl_resnet", tiny_backbone, tiny_taxonomy(), {}).eval()
    pixels = torch.randn(3, 24, 24)
    smoothed = smoothing(method, 0.3, 50, top=2, batch_size=16)
    votes = smoothed.votes(pixels)
    assert votes.sum() == 100
    np.testing.assert_array_equal(smoothed.votes(pixels), votes)
    assert votes[smoothed.predict(pixels, 3)].tolist() == sorted(votes, reverse=True)[:3]
    logits = method(tiny_backbone.features(pixels[None], method.needs)).logits[0]
    calm = smoothing(method, 1e-6, 8, top=2)
    assert sorted(calm.predict(pixels, 2).tolist()) == sorted(logits.topk(2).indices.tolist())
    true = np.zeros(5, dtype=bool)
    true[logits.argmax()] = True
    # Eight equal votes of eight: the certificate's own closed form, lower bound (α/K)^(1/n), upper 1 − that.
    sure, far = smoothing(method, 1e-6, 2000).certify(pixels, true, k=1, radius=0)
    bound = (0.001 / 5) ** (1 / 2000)
    assert sure == 1
    assert far == pytest.approx(1e-6 * norm.ppf(bound), rel=1e-6)


@pytest.mark.parametrize(("sigma", "n", "top"), [(0, 5, 1), (0.5, 0, 1), (0.5, 5, 0)])
def test_smoothing_needs_positive_numbers(sigma: float, n: int, top: int, tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(ValueError, match="sigma, n, top"):
        smoothing(build_method("prior", tiny_backbone, tiny_taxonomy(), {}), sigma, n, top=top)


def test_any_method_can_be_wrapped_but_not_itself(tiny_backbone: TinyBackbone) -> None:
    pixels = torch.randn(2, 3, 24, 24)
    for name in ("prior", "zero_shot", "linear_probe", "asl_resnet"):
        torch.manual_seed(0)
        plain = build_method(name, tiny_backbone, tiny_taxonomy(), {}).eval()
        torch.manual_seed(0)
        wrapped = build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"method": name}).eval()
        expected = plain(tiny_backbone.features(pixels, plain.needs)).logits
        torch.testing.assert_close(wrapped({"pixels": pixels}).logits, expected)
        assert sorted(wrapped.own_state()) == sorted(f"inner.{key}" for key in plain.own_state())
    with pytest.raises(RecipeError, match=r"^multiguard "):
        build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"method": "multiguard"})


def test_noisy_copies_are_averaged_in_evaluation(tiny_backbone: TinyBackbone) -> None:
    pixels = torch.randn(2, 3, 24, 24)
    torch.manual_seed(0)
    options = {"method": "asl_resnet", "samples": 3, "sigma": 0.2}
    wrapped = build_method("multiguard", tiny_backbone, tiny_taxonomy(), options).eval()
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(3):
        noise = torch.randn(3, 24, 24, generator=generator)
        noisy = add_noise(pixels, noise, tiny_backbone.preprocess, 0.2)
        rows.append(wrapped.inner(tiny_backbone.features(noisy, wrapped.inner.needs)).logits.sigmoid())
    torch.testing.assert_close(wrapped({"pixels": pixels}).logits.sigmoid(), torch.stack(rows).mean(dim=0))


def test_noisy_copies_of_exclusive_labels_sum_to_one(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    taxonomy, pixels = replace(tiny_taxonomy(), exclusive=True), torch.randn(2, 3, 24, 24)
    options = {"method": "asl_resnet", "samples": 1, "sigma": 1e-9}
    wrapped = build_method("multiguard", tiny_backbone, taxonomy, options).eval()
    plain = wrapped.inner(tiny_backbone.features(pixels.clamp(-2, 2), wrapped.inner.needs)).logits  # values in [0, 1]
    torch.testing.assert_close(wrapped({"pixels": pixels}).logits.exp(), plain.softmax(dim=1))


def test_training_sees_other_noise_in_every_step(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    wrapped = build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"sigma": 0.5}).train()
    features, targets = {"pixels": torch.randn(4, 3, 24, 24)}, torch.ones(4, 5)
    losses = [float(wrapped.training_loss([features], targets)["classification"].detach()) for _ in range(3)]
    assert all(a != b for a, b in itertools.combinations(losses, 2))


def test_a_wrapped_method_whose_size_the_photos_decide_is_loaded(tiny_backbone: TinyBackbone) -> None:
    pixels = torch.randn(7, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    one, other = (
        build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"method": "tip_adapter"}).eval() for _ in "ab"
    )
    one.prepare([({"pixels": pixels}, torch.eye(7, 5))])
    other.load_own_state(one.own_state())
    torch.testing.assert_close(other({"pixels": pixels}).logits, one({"pixels": pixels}).logits)


def test_a_wrapped_method_is_told_which_step_comes(tiny_backbone: TinyBackbone) -> None:
    options = {"context_length": 3, "prompts_every": 2}
    wrapped = build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"method": "intclip", "options": options})
    features, targets = {"pixels": torch.randn(2, 3, 24, 24)}, torch.ones(2, 5)
    learns = []
    for step in range(4):
        wrapped.before_step(step)
        wrapped.zero_grad(set_to_none=True)
        sum(wrapped.training_loss([features], targets).values()).backward()
        learns.append(wrapped.inner.prompts.context.grad is not None)
    assert learns == [True, False, True, False]


def test_a_wrapped_method_reads_what_stands_beside_the_photos(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(1)
    options = {"objects": ["class 0"], "contexts": [], "hashtags": True, "text_dropout": 0}
    wrapped = build_method("multiguard", tiny_backbone, tiny_taxonomy(), {"method": "intentonomy", "options": options})
    assert wrapped.extra_inputs == wrapped.inner.extra_inputs == ("mask", "text")
    photos = {"pixels": torch.randn(2, 3, 24, 24)}
    beside = {"mask": torch.zeros(2, 1, 24, 24), "text": torch.randn(2, 8)}
    terms = wrapped.training_loss([photos | beside], torch.ones(2, 5))
    assert terms["localisation"] > 0
    wrapped.eval()
    torch.testing.assert_close(
        wrapped(photos | beside).logits - wrapped(photos).logits, wrapped.inner.words(beside["text"])
    )
