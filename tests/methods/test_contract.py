"""The contract of `Method`, for every registered method, end to end, on a tiny backbone."""

from pathlib import Path

import pytest
import torch
from colours import check_round_trip
from variants import OWN, VARIANTS, batch, built

from fakes import TinyBackbone
from intclip.errors import RecipeError

NO_MAPS = {"prior", "mlp_probe", "ridge_probe", "ridge_probe kernel", "linear_probe", "fdil"}
UNTRAINED = {"prior", "zero_shot", "tip_adapter", "sparc", "post_heads"} | {
    "ridge_probe",
    "ridge_probe kernel",
    "ridge_probe pooled",
}
"""Methods without gradient-based training."""
STEPS = 3
"""Some parameters have a gradient only after others have left zero."""
SCALED = {
    *("coop dual", "dualcoop", "dualcoop_pp", "dualcoop_pp boost", "positive_coop", "negative_coop"),
    *("intclip", "intclip free negative", "intclip over levels", "intclip_words", "ensemble"),
    *("ridge_probe", "ridge_probe kernel"),
}
"""Methods whose logits are small differences times a large scale, 100 for CLIP's two cosines."""
HALF_ERROR = 100 * 4 * 2.0**-9
"""Bound of such a logit's error in bfloat16: rounding a unit vector's elements by a relative 2^-9 changes a cosine by
at
most 2^-9, and each of the two cosines has two such vectors."""
ONE_REGION = {"cpad frozen, equal", "wseip frozen", "msrca frozen"}
"""Variants that use the tiny backbone's own last stage, which has one region."""


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("variant", VARIANTS)
def test_contract(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets), batch(method, seed=1)])
    before = {key: value.clone() for key, value in tiny_backbone.state_dict().items()}
    method.before_step(0)
    terms = method.train().training_loss([features] * method.views, targets)
    assert all(term.isfinite() and term.ndim == 0 for term in terms.values())
    method.after_step()
    method.after_epoch(1)
    for key, value in tiny_backbone.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in tiny_backbone.parameters())
    method.eval()
    with torch.no_grad():
        shown, again = method(features, maps=True), method(features)
        photos_alone = method({name: features[name] for name in method.needs})
    assert shown.logits.shape == photos_alone.logits.shape == (6, 5)
    torch.testing.assert_close(shown.logits, again.logits)
    assert not again.maps
    assert bool(shown.maps) == (VARIANTS[variant][0] not in NO_MAPS)
    grid = (1, 1) if variant in ONE_REGION else (3, 3)
    assert all(value.shape == (6, 5, *grid) for value in shown.maps.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_photo_scores_the_same_in_any_batch(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    method.eval()
    with torch.no_grad():
        together = method(features).logits
        for count in (1, 2, 5):
            alone = method({name: value[:count] for name, value in features.items()}).logits
            torch.testing.assert_close(alone, together[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_reaches_what_should_learn_and_nothing_else(variant: str, tiny_backbone: TinyBackbone) -> None:
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    method.train()
    grouped = [parameter for group in method.parameter_groups() for parameter in group.parameters]
    assert sorted(map(id, grouped)) == sorted(map(id, method.learnable_parameters()))
    assert bool(grouped) == (variant not in UNTRAINED)
    assert not any("backbone." in key for key in method.own_state())
    if not grouped:
        return
    # A different second view, for losses that compare views.
    other = {name: value + 0.1 * torch.randn_like(value) for name, value in features.items()}
    optimizer = torch.optim.SGD(grouped, lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        method.before_step(step)
        total(method.training_loss([features, other][: method.views], targets)).backward()
        optimizer.step()
        method.after_step()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            # Softmax is invariant to a shift of all keys or scores, whose gradient is 0 up to rounding.
            assert parameter.grad.abs().max() > 0 or key.endswith(("key.bias", "decoupling.score.bias")), key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize("variant", VARIANTS)
def test_own_state_makes_an_equal_method(variant: str, tiny_backbone: TinyBackbone) -> None:
    first, second = built(variant, tiny_backbone), built(variant, tiny_backbone)
    features, targets = batch(first)
    first.prepare([(features, targets)])
    with torch.no_grad():
        for parameter in first.learnable_parameters():
            parameter += torch.randn_like(parameter)
    second.load_own_state(first.own_state())
    torch.testing.assert_close(second.eval()(features).logits, first.eval()(features).logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_label_alone_works_or_is_refused(variant: str, tiny_backbone: TinyBackbone) -> None:
    if variant == "pipnet":
        with pytest.raises(RecipeError, match="pipnet"):
            built(variant, tiny_backbone, classes=1)
        return
    method = built(variant, tiny_backbone, classes=1)
    features, targets = batch(method)
    method.prepare([(features, targets)])
    terms = method.train().training_loss([features] * method.views, targets)
    assert total(terms).isfinite()
    assert method.eval()(features).logits.shape == (6, 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_batch_taken_twice_doubles_a_sum_and_keeps_a_mean(variant: str, tiny_backbone: TinyBackbone) -> None:
    """The loop weights the parts of a batch by the method's `loss_reduction`."""
    method = built(variant, tiny_backbone)
    features, targets = batch(method)
    targets = targets.nan_to_num(0)
    method.prepare([(features, targets)])
    method.eval()
    twice = {key: torch.cat([value, value]) for key, value in features.items()}
    with torch.no_grad():
        once = total(method.loss(method(features), targets))
        both = total(method.loss(method(twice), torch.cat([targets, targets])))
    expected = torch.tensor({"sum": 2.0, "mean": 1.0}[method.loss_reduction])
    torch.testing.assert_close(both / once, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_trains_and_scores_as_single_does(
    variant: str, dtype: torch.dtype, tiny_backbone: TinyBackbone
) -> None:
    found = []
    for enabled in (True, False):
        method = built(variant, tiny_backbone)
        features, targets = batch(method)
        method.prepare([(features, targets)])
        method.eval()  # no dropout
        torch.manual_seed(2)  # for noise
        with torch.autocast("cpu", dtype, enabled=enabled):
            loss = total(method.training_loss([features] * method.views, targets))
            logits = method(features).logits.float()
        if loss.requires_grad:
            torch.autograd.backward(loss)
        assert all(p.grad.isfinite().all() for p in method.learnable_parameters() if p.grad is not None)
        found.append((loss.detach(), logits.detach()))
    (loss, logits), (expected_loss, expected) = found
    torch.testing.assert_close(loss, expected_loss, rtol=0.05, atol=0.05)
    scaled = dtype == torch.bfloat16 and variant in SCALED
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=HALF_ERROR if scaled else 0.05)


@pytest.mark.parametrize("name", [name for name in OWN if name not in UNTRAINED])
def test_train_save_load_predict(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_round_trip(*VARIANTS[name], tmp_path, monkeypatch, maps=name not in NO_MAPS)
