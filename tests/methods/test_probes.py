"""Zero-shot, prior and probes, compared with closed forms and scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from fakes import TinyBackbone, tiny_taxonomy
from intclip.errors import RecipeError
from intclip.labels.templates import TEMPLATES
from intclip.methods.probe_inputs import ProbeInput
from intclip.methods.registry import build_method


def unit_text(backbone: TinyBackbone, sentences: list[str]) -> torch.Tensor:
    return F.normalize(backbone.encode_text(backbone.tokenize(sentences)), dim=1)


def test_zero_shot_moments_count_deviations_above_the_ordinary(tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(4000, 8) * torch.linspace(0.2, 2, 8) + torch.randn(8)
    unit = F.normalize(embeddings, dim=1)
    tiny_backbone.image_moments = (unit.mean(dim=0), torch.cov(unit.T, correction=0))
    method = build_method("zero_shot", tiny_backbone, tiny_taxonomy(), {"gain": 3, "offset": 0.5})
    logits = method({"pooled": embeddings}).logits
    z = logits / 3 + 0.5
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(5), atol=2e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=0, correction=0), torch.ones(5), atol=2e-4, rtol=0)
    cosine = unit @ unit_text(tiny_backbone, tiny_taxonomy().sentences("11-15")).T
    expected = (cosine - cosine.mean(dim=0)) / cosine.std(dim=0, correction=0)
    torch.testing.assert_close(z, expected, atol=2e-4, rtol=1e-3)


def test_zero_shot_neutral_is_a_softmax_against_the_neutral_sentence(tiny_backbone: TinyBackbone) -> None:
    options = {"sentence_form": "fine", "templates": ("a photo of {}",), "neutral": "a photo", "scale": 7}
    method = build_method("zero-shot", tiny_backbone, tiny_taxonomy(), options)
    embeddings = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    text = unit_text(tiny_backbone, [f"a photo of class {i}" for i in range(5)])
    neutral = unit_text(tiny_backbone, ["a photo"])[0]
    image = F.normalize(embeddings, dim=1)
    pairs = 7 * torch.stack([image @ text.T, (image @ neutral)[:, None].expand(-1, 5)])
    torch.testing.assert_close(torch.sigmoid(method({"pooled": embeddings}).logits), pairs.softmax(dim=0)[0])


def test_zero_shot_ensembles_average_unit_features(tiny_backbone: TinyBackbone) -> None:
    names = [f"class {i}" for i in range(5)]
    method = build_method(
        "zero_shot", tiny_backbone, tiny_taxonomy(), {"sentence_form": "fine", "templates": "ensemble"}
    )
    per_template = [unit_text(tiny_backbone, [t.replace("{}", n) for n in names]) for t in TEMPLATES["ensemble"]]
    neutral = unit_text(tiny_backbone, ["a photo."])
    torch.testing.assert_close(method.text, F.normalize(torch.stack(per_template).mean(dim=0), dim=1) - neutral)


def test_zero_shot_maps_are_the_logits_of_single_regions(tiny_backbone: TinyBackbone) -> None:
    method = build_method("zero_shot", tiny_backbone, tiny_taxonomy(), {})
    features = tiny_backbone.features(torch.randn(2, 3, 24, 24), method.needs)
    maps = method(features, maps=True).maps["sight"]
    for row in range(3):
        for column in range(3):
            alone = method({"pooled": features["regions"][:, :, row, column]}).logits
            torch.testing.assert_close(maps[:, :, row, column], alone)
    assert method.own_state() == {}
    with pytest.raises(RecipeError, match=r"image moments.*neutral or auto"):
        build_method("zero_shot", tiny_backbone, tiny_taxonomy(), {"scoring": "moments"})


def test_prior_is_the_smoothed_frequency(tiny_backbone: TinyBackbone) -> None:
    method = build_method("prior", tiny_backbone, tiny_taxonomy(), {"pseudo_count": 2})
    targets = torch.tensor([[1, 0, 0.5, float("nan"), 0], [1, 0, 0.25, 1, 0], [1, 1, 0, 1, 0]])
    features = {"pooled": torch.randn(3, 8)}
    method.prepare([(features, targets[:2]), ({"pooled": torch.randn(1, 8)}, targets[2:])])
    probabilities = torch.sigmoid(method(features).logits)
    expected = torch.tensor([4 / 5, 2 / 5, 1.75 / 5, 3 / 4, 1 / 5])
    torch.testing.assert_close(probabilities, expected.expand(3, -1))


def test_prior_of_exclusive_labels_sums_to_one(tiny_backbone: TinyBackbone) -> None:
    taxonomy = replace(tiny_taxonomy(3), exclusive=True)
    method = build_method("prior", tiny_backbone, taxonomy, {"pseudo_count": 2})
    method.prepare([({"pooled": torch.randn(7, 8)}, torch.eye(3)[[0, 0, 0, 0, 1, 1, 2]])])
    probabilities = method({"pooled": torch.randn(2, 8)}).logits.softmax(dim=1)
    torch.testing.assert_close(probabilities, torch.tensor([[5, 3, 2]]).div(10).expand(2, -1))


@pytest.mark.parametrize("kind", ["pooled", "region_mean", "pooled_and_region_mean"])
def test_probe_inputs_are_scaled_by_the_training_set(kind: str) -> None:
    torch.manual_seed(0)
    inputs = ProbeInput(8, kind, "standardize")
    features = {"pooled": 3 * torch.randn(50, 8) + 5, "regions": torch.randn(50, 8, 2, 2) - 4}
    parts = [({name: value[rows] for name, value in features.items()}, rows) for rows in torch.arange(50).split(17)]
    inputs.fit(parts)
    out = inputs(features)
    assert out.shape == (50, inputs.width)
    torch.testing.assert_close(out.mean(dim=0), torch.zeros(inputs.width), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(dim=0, correction=0), torch.ones(inputs.width))
    raw = ProbeInput(8, kind, "none")(features)
    unit = ProbeInput(8, kind, "l2")(features)
    torch.testing.assert_close(unit[:, :8], F.normalize(raw[:, :8], dim=1))


def test_the_linear_probe_reaches_scikit_learns_optimum(tiny_backbone: TinyBackbone) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8)).astype(np.float32)
    y = (rng.random((200, 5)) < 1 / (1 + np.exp(-x @ rng.normal(size=(8, 5))))).astype(np.float32)
    method = build_method("linear_probe", tiny_backbone, tiny_taxonomy(), {"scaling": "none"})
    features, targets = {"pooled": torch.from_numpy(x)}, torch.from_numpy(y)
    optimizer = torch.optim.LBFGS(method.learnable_parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        (loss,) = method.loss(method(features), targets).values()
        (loss + method.linear.weight.square().sum() / (2 * 200)).backward()
        return loss + method.linear.weight.square().sum() / (2 * 200)

    optimizer.step(closure)
    for k in range(5):
        oracle = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(x, y[:, k])
        np.testing.assert_allclose(method.linear.weight[k].detach().numpy(), oracle.coef_[0], atol=2e-3)


@pytest.mark.parametrize("scaling", ["none", "standardize"])
def test_class_activation_maps_average_to_the_logits(scaling: str, tiny_backbone: TinyBackbone) -> None:
    torch.manual_seed(0)
    options = {"vector": "region_mean", "scaling": scaling}
    method = build_method("linear_probe", tiny_backbone, tiny_taxonomy(), options)
    torch.nn.init.normal_(method.linear.weight)
    features = {"regions": torch.randn(4, 8, 3, 3)}
    method.prepare([(features, torch.zeros(4, 5))])
    output = method(features, maps=True)
    torch.testing.assert_close(output.maps["fused"].mean(dim=(2, 3)), output.logits, atol=1e-5, rtol=1e-4)
