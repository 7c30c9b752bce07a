"""Losses, compared with slow references, closed forms and limiting cases, and with extreme inputs."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from intclip.losses import (
    asymmetric_loss,
    asymmetric_loss_with_logits,
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    soft_cross_entropy,
)

PROBABILITIES = torch.tensor([[0.9, 0.02, 0.3], [0.5, 0.77, 0.04]], dtype=torch.float64)
TARGETS = torch.tensor([[1.0, 0.0, 0.4], [0.0, 1.0, 0.0]], dtype=torch.float64)


def slow_asymmetric(p: float, y: float, gamma_pos: float, gamma_neg: float, margin: float) -> float:
    pm = max(p - margin, 0.0)
    return -y * (1 - p) ** gamma_pos * math.log(p) - (1 - y) * pm**gamma_neg * math.log(1 - pm)


@pytest.mark.parametrize(
    ("gamma_pos", "gamma_neg", "margin"), [(1, 2, 0.05), (0, 4, 0.2), (0, 0, 0), (0, 0, 0.2), (2.5, 1, 0)]
)
def test_equals_the_formula_entry_by_entry(gamma_pos: float, gamma_neg: float, margin: float) -> None:
    pairs = zip(PROBABILITIES.flatten().tolist(), TARGETS.flatten().tolist(), strict=True)
    expected = torch.tensor([slow_asymmetric(p, y, gamma_pos, gamma_neg, margin) for p, y in pairs]).view(2, 3)
    arguments = {"gamma_pos": gamma_pos, "gamma_neg": gamma_neg, "margin": margin, "reduction": "none"}
    torch.testing.assert_close(asymmetric_loss(PROBABILITIES, TARGETS, **arguments), expected)
    torch.testing.assert_close(
        asymmetric_loss_with_logits(torch.logit(PROBABILITIES), TARGETS, **arguments), expected, rtol=2e-6, atol=1e-7
    )


def test_hand_computed_value() -> None:
    loss = asymmetric_loss(torch.tensor([[0.5, 0.55]]), torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(0.5 * math.log(2) + 0.25 * math.log(2), rel=1e-6)


def test_a_negative_below_the_margin_costs_nothing_and_pulls_nothing() -> None:
    p = torch.tensor([[0.03, 0.05]], requires_grad=True)
    loss = asymmetric_loss(p, torch.zeros(1, 2))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-9)
    assert p.grad is not None
    assert p.grad[0, 0].item() == 0


def test_without_focusing_it_is_binary_cross_entropy() -> None:
    p, y = PROBABILITIES.float(), TARGETS.float()
    expected = F.binary_cross_entropy(p, y, reduction="sum")
    torch.testing.assert_close(binary_cross_entropy(p, y), expected)
    torch.testing.assert_close(binary_cross_entropy_with_logits(torch.logit(p), y), expected)


def test_focal_weights_take_no_gradient() -> None:
    logits = torch.tensor([[1.2, -0.3, 2.0]], dtype=torch.float32, requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.25]])
    asymmetric_loss_with_logits(logits, targets, margin=0).backward()
    p = torch.sigmoid(logits.detach())
    # d/dz of −w₊ y log p − w₋ (1 − y) log(1 − p), weights fixed: −w₊ y (1 − p) + w₋ (1 − y) p.
    expected = -(1 - p) * targets * (1 - p) + p**2 * (1 - targets) * p
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("size", [20.0, 100.0, 1e4])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_extreme_logits_give_finite_values_and_gradients(size: float, margin: float) -> None:
    logits = torch.tensor([[size, -size, size, -size]], requires_grad=True)
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    loss = asymmetric_loss_with_logits(logits, targets, margin=margin, reduction="none")
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    worst = -math.log(margin) if margin else size
    torch.testing.assert_close(loss.detach(), torch.tensor([[0.0, size, worst * (1 - margin) ** 2, 0.0]]))


def test_probabilities_zero_and_one_give_finite_values_and_gradients() -> None:
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0]], requires_grad=True)
    for loss in (asymmetric_loss, binary_cross_entropy):
        value = loss(p, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        (gradient,) = torch.autograd.grad(value, p)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_an_unknown_target_adds_no_loss_and_no_gradient() -> None:
    logits = torch.tensor([[0.7, -1.1, 0.2]], requires_grad=True)
    targets = torch.tensor([[1.0, float("nan"), 0.0]])
    loss = asymmetric_loss_with_logits(logits, targets)
    loss.backward()
    kept = asymmetric_loss_with_logits(logits.detach()[:, [0, 2]], targets[:, [0, 2]])
    torch.testing.assert_close(loss.detach(), kept)
    assert logits.grad is not None
    assert logits.grad[0, 1].item() == 0
    assert logits.grad.isfinite().all()
    mean = asymmetric_loss_with_logits(logits.detach(), targets, reduction="mean")
    torch.testing.assert_close(mean, kept / 2)
    assert asymmetric_loss(torch.sigmoid(logits), torch.full((1, 3), float("nan")), reduction="mean").item() == 0


def test_reductions() -> None:
    none = asymmetric_loss(PROBABILITIES, TARGETS, reduction="none")
    assert none.shape == (2, 3)
    torch.testing.assert_close(asymmetric_loss(PROBABILITIES, TARGETS), none.sum())
    torch.testing.assert_close(asymmetric_loss(PROBABILITIES, TARGETS, reduction="batch"), none.sum() / 2)
    torch.testing.assert_close(asymmetric_loss(PROBABILITIES, TARGETS, reduction="mean"), none.mean())
    for reduction in ("none", "sum", "mean"):
        expected = F.binary_cross_entropy(PROBABILITIES, TARGETS, reduction=reduction).float()
        torch.testing.assert_close(binary_cross_entropy(PROBABILITIES, TARGETS, reduction=reduction).float(), expected)
        logits = torch.logit(PROBABILITIES)
        found = binary_cross_entropy_with_logits(logits, TARGETS, reduction=reduction).float()
        torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match="'avg'"):
        asymmetric_loss(PROBABILITIES, TARGETS, reduction="avg")


@pytest.mark.parametrize("loss", [asymmetric_loss, asymmetric_loss_with_logits, binary_cross_entropy])
@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 3), (2, 3, 1)])
def test_targets_of_another_shape_are_not_spread(loss: Callable[..., torch.Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        loss(PROBABILITIES, torch.ones(shape))


@given(st.floats(-30, 30), st.floats(0, 1))
def test_a_soft_target_mixes_the_hard_losses(logit: float, y: float) -> None:
    z = torch.tensor([[logit]])
    positive = asymmetric_loss_with_logits(z, torch.ones(1, 1))
    negative = asymmetric_loss_with_logits(z, torch.zeros(1, 1))
    torch.testing.assert_close(
        asymmetric_loss_with_logits(z, torch.tensor([[y]])), y * positive + (1 - y) * negative, rtol=1e-5, atol=1e-6
    )


def test_soft_cross_entropy_agrees_with_torch_and_leaves_out_unlabelled_photos() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3)
    votes = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 0.0]])
    expected = F.cross_entropy(logits[:2], votes[:2] / votes[:2].sum(dim=1, keepdim=True))
    torch.testing.assert_close(soft_cross_entropy(logits, votes), expected)
    torch.testing.assert_close(soft_cross_entropy(logits, votes, reduction="sum"), 2 * expected)
    torch.testing.assert_close(soft_cross_entropy(logits, votes, reduction="none")[2:], torch.zeros(2))
    one_hot = F.one_hot(torch.tensor([0, 2, 1, 1]), 3).float()
    torch.testing.assert_close(soft_cross_entropy(logits, one_hot), F.cross_entropy(logits, torch.tensor([0, 2, 1, 1])))
