"""The ridge probe, compared with scikit-learn and with actual leave-one-out fits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import KernelCenterer

from fakes import TinyBackbone, tiny_taxonomy
from intclip.methods.registry import build_method
from intclip.methods.ridge_probe.solver import fit_logits, fit_nystrom, fit_ridge


def problem(rows: int = 40, width: int = 6, labels: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    y = (x @ torch.randn(width, labels, generator=generator) + torch.randn(rows, labels, generator=generator)).sigmoid()
    return x - x.mean(dim=0), y


def test_weights_are_scikit_learns_and_left_out_answers_those_of_refits() -> None:
    x, y = problem()
    found = fit_ridge(x, y, [3.0])
    sklearn = Ridge(alpha=3.0).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(found.weight.numpy(), sklearn.coef_.T, atol=1e-6)
    for row in (0, 17, 39):
        rest = np.delete(np.arange(len(x)), row)
        refit = Ridge(alpha=3.0).fit(x[rest].numpy(), y[rest].numpy())
        np.testing.assert_allclose(found.left_out[row].numpy(), refit.predict(x[row : row + 1].numpy())[0], atol=1e-6)


def test_the_strength_is_the_one_with_the_least_left_out_error() -> None:
    x, y = problem(rows=12, width=10)
    penalties = [1e-3, 0.1, 1.0, 10.0, 1e3]
    errors = [float((fit_ridge(x, y, [each]).left_out - y).square().mean()) for each in penalties]
    assert fit_ridge(x, y, penalties).penalty == penalties[int(np.argmin(errors))]
    assert np.argmin(errors) not in (0, len(penalties) - 1)


def test_with_all_photos_as_landmarks_it_is_scikit_learns_kernel_ridge() -> None:
    x, y = problem(rows=30)
    kernel = torch.exp(-torch.cdist(x, x).square() / 8).double()
    found = fit_nystrom(kernel, kernel, y, [0.3], least=1e-12)
    centred = KernelCenterer().fit_transform(kernel.numpy())
    mean = y.mean(dim=0).double()
    sklearn = KernelRidge(alpha=0.3, kernel="precomputed").fit(centred, (y - mean).numpy())
    expected = sklearn.predict(centred) + mean.numpy()
    np.testing.assert_allclose((kernel @ found.weight + found.bias).numpy(), expected, atol=1e-6)
    for row in (0, 29):
        rest = np.delete(np.arange(30), row)
        refit = fit_nystrom(kernel[rest], kernel, y[rest], [0.3], least=1e-12)
        answer = kernel[row] @ refit.weight + refit.bias
        np.testing.assert_allclose(found.ridge.left_out[row].numpy(), answer.numpy(), atol=1e-6)


def test_a_kernel_learns_what_no_line_can() -> None:
    """Exclusive or: the best linear prediction is the mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (200, 2), generator=generator) * 2.0 - 1
    y = (x.prod(dim=1, keepdim=True) > 0).float()
    noisy = x + 0.2 * torch.randn(x.shape, generator=generator)
    line = fit_ridge(noisy - noisy.mean(dim=0), y, [1.0])
    kernel = torch.exp(-torch.cdist(noisy, noisy[:50]).square())
    found = fit_nystrom(kernel, kernel[:50], y, [0.1])
    assert float((line.left_out - y).abs().mean()) > 0.4
    assert float((found.ridge.left_out - y).abs().mean()) < 0.15


@pytest.mark.parametrize("landmarks", [5, 40, 90])
def test_the_kernel_probe_survives_few_photos_and_a_bundle(landmarks: int) -> None:
    backbone = TinyBackbone()
    torch.manual_seed(0)
    features = backbone.features(torch.randn(40, 3, 24, 24), ("trunk",))
    targets = (torch.rand(40, 5) < 0.4).float()
    methods = [build_method("ridge_probe", backbone, tiny_taxonomy(), {"landmarks": landmarks}) for _ in range(2)]
    methods[0].prepare([(features, targets)])
    methods[1].load_own_state(methods[0].own_state())
    logits = [method(features).logits for method in methods]
    assert torch.isfinite(logits[0]).all()
    torch.testing.assert_close(*logits, rtol=0, atol=0)


def test_logits_are_scikit_learns_logistic_regressions() -> None:
    x, y = problem(rows=300)
    hard = (y > 0.5).float()
    slope, offset = fit_logits(x[:, :5], hard, exclusive=False)
    for label in range(5):
        column = x[:, label : label + 1].numpy()
        sklearn = LogisticRegression(C=1e6).fit(column, hard[:, label].numpy())
        # The difference comes from the small penalty that keeps a label without photos finite.
        np.testing.assert_allclose(slope[label].item(), sklearn.coef_[0, 0], atol=2e-3)
        np.testing.assert_allclose(offset[label].item(), sklearn.intercept_[0], atol=2e-3)


@pytest.mark.parametrize("exclusive", [False, True])
def test_the_probe_learns_and_its_probabilities_are_those_seen(exclusive: bool) -> None:
    backbone = TinyBackbone()
    torch.manual_seed(0)
    pixels = torch.randn(400, 3, 24, 24)
    features = backbone.features(pixels, ("trunk",))
    method = build_method("ridge_probe", backbone, replace(tiny_taxonomy(), exclusive=exclusive), {})
    vectors = method._vectors(features)
    scores = vectors @ torch.randn(vectors.shape[1], 5)
    scores = 4 * (scores - scores.mean(dim=0)) / scores.std(dim=0)
    if exclusive:
        targets = torch.nn.functional.one_hot(scores.argmax(dim=1), 5).float()
    else:
        targets = (scores > 1).float()
        targets[:5, 2] = float("nan")
    method.prepare(
        [({"trunk": features["trunk"][:250]}, targets[:250]), ({"trunk": features["trunk"][250:]}, targets[250:])]
    )
    logits = method(features).logits
    told = logits.softmax(dim=1) if exclusive else logits.sigmoid()
    known = ~targets.isnan()
    for label in range(5):
        seen = known[:, label]
        assert told[seen, label].mean().item() == pytest.approx(targets[seen, label].mean().item(), abs=0.03)
    right = (logits.argmax(dim=1) == targets.argmax(dim=1)) if exclusive else ((logits > 0) == (targets > 0.5))[known]
    assert right.float().mean() > 0.85
    assert method.learnable_parameters() == []


def test_it_is_built_over_a_backbone_on_any_device() -> None:
    method = build_method("ridge_probe", TinyBackbone().to("meta"), tiny_taxonomy(), {})
    assert method.weight.shape == (7 + 6, 5)
