"""Calibration: known distortions are reversed, errors match closed forms."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.isotonic import IsotonicRegression

from intclip.evaluation.calibration import (
    IsotonicMap,
    apply_temperature,
    expected_calibration_error,
    fit_isotonic,
    fit_temperature,
    reliability_curve,
)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def calibrated(images: int = 4000, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, (images, classes))
    return logits, (rng.random(logits.shape) < sigmoid(logits)).astype(float)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_temperature_undoes_a_known_sharpness(sharpness: float) -> None:
    logits, targets = calibrated()
    assert fit_temperature(sharpness * logits, targets) == pytest.approx(sharpness, rel=0.04)


def test_temperature_of_soft_targets_is_exact() -> None:
    logits, _ = calibrated(images=200)
    assert fit_temperature(2.5 * logits, sigmoid(logits)) == pytest.approx(2.5, rel=1e-4)


def test_temperature_leaves_out_unknown_targets() -> None:
    logits, targets = calibrated(images=500)
    partly = targets.copy()
    partly[::3] = np.nan
    known = ~np.isnan(partly[:, 0])
    assert fit_temperature(logits, partly) == pytest.approx(fit_temperature(logits[known], targets[known]))


def test_temperature_of_exclusive_labels_is_exact_without_photos_of_unknown_label() -> None:
    logits = np.random.default_rng(3).normal(0, 2, (200, 4))
    targets = softmax(logits, axis=1)
    targets[::3, 1] = np.nan
    logits[::6] *= -5  # would change the fit
    assert fit_temperature(2.5 * logits, targets, exclusive=True) == pytest.approx(2.5, rel=1e-4)
    np.testing.assert_allclose(
        apply_temperature(softmax(logits, axis=1), 2.5, exclusive=True), softmax(logits / 2.5, axis=1), rtol=1e-6
    )
    with pytest.raises(ValueError, match="no known target"):
        fit_temperature(logits[::3], targets[::3], exclusive=True)


def test_applying_a_temperature_divides_the_logit_and_keeps_the_ends() -> None:
    logits, _ = calibrated(images=50)
    np.testing.assert_allclose(apply_temperature(sigmoid(logits), 2.0), sigmoid(logits / 2), atol=1e-12)
    np.testing.assert_allclose(apply_temperature([0.0, 1.0], 1.0), [0, 1], atol=1e-11)
    # Certain scores stay finite logits: ±log(10¹² − 1), and log(10⁻³⁸) of exclusive labels.
    certain = sigmoid(np.log(1e12 - 1) / 10)
    np.testing.assert_allclose(apply_temperature([0.0, 1.0], 10.0), [1 - certain, certain], rtol=1e-4)
    rest = 1e-38**0.01
    found = apply_temperature([1.0, 0.0], 100.0, exclusive=True)
    np.testing.assert_allclose(found, np.array([1, rest]) / (1 + rest), rtol=1e-9)


def test_isotonic_equals_scikit_learn_and_survives_json() -> None:
    logits, targets = calibrated(images=300)
    scores = sigmoid(3 * logits)
    fitted = fit_isotonic(scores, targets)
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores.ravel(), targets.ravel())
    np.testing.assert_allclose(fitted(scores).ravel(), reference.predict(scores.ravel()), atol=1e-12)
    stored = json.loads(json.dumps(asdict(fitted)))
    again = IsotonicMap(tuple((tuple(x), tuple(y)) for x, y in stored["knots"]))
    np.testing.assert_array_equal(again(scores), fitted(scores))


def test_isotonic_per_class_spares_rare_classes() -> None:
    logits, targets = calibrated(images=400)
    targets[:, 0] = 0
    targets[:3, 0] = 1
    scores = sigmoid(logits)
    fitted = fit_isotonic(scores, targets, per_class=True)
    assert len(fitted.knots) == 4
    np.testing.assert_allclose(fitted(scores)[:, 0], fit_isotonic(scores, targets)(scores)[:, 0])
    own = fit_isotonic(scores[:, 1:2], targets[:, 1:2])(scores[:, 1:2])
    np.testing.assert_allclose(fitted(scores)[:, 1], own[:, 0])
    assert (np.diff(fitted(np.linspace(0, 1, 50)[:, None] * np.ones(4)), axis=0) >= 0).all()
    with pytest.raises(ValueError, match="4 classes"):
        fitted(scores[:, :2])


def test_a_class_of_twenty_positives_has_a_map_of_its_own() -> None:
    scores = np.linspace(0, 1, 80).reshape(40, 2)
    targets = np.zeros((40, 2))
    targets[:20, 0] = targets[:19, 1] = 1  # the lower half, so that each map is flat
    own, common = fit_isotonic(scores, targets, per_class=True), fit_isotonic(scores, targets)
    np.testing.assert_allclose(own(scores)[:, 0], 0.5)
    np.testing.assert_allclose(own(scores)[:, 1], 39 / 80)
    np.testing.assert_allclose(common(scores), 39 / 80)


def test_a_score_at_an_edge_belongs_to_the_bin_above() -> None:
    curve = reliability_curve([0.25, 0.5, 0.5, 1.0], [0, 1, 1, 0], bins=2)
    np.testing.assert_array_equal(curve.count, [1, 3])
    np.testing.assert_allclose(curve.frequency, [0, 2 / 3])
    np.testing.assert_allclose(reliability_curve([0.1, 0.4], [0, 1], bins=[0, 0.4, 1]).score, [0.1, 0.4])


def test_calibration_error_closed_forms() -> None:
    # Bins of equal width by default: all in one of fifteen, where bins of equal mass would hold one each.
    assert expected_calibration_error([0.01, 0.02, 0.03, 0.04], [0, 0, 0, 1]) == pytest.approx(0.225)
    assert expected_calibration_error([[0.9, 0.1]], [[1, 0]]) == pytest.approx(0.1)
    assert expected_calibration_error(np.full((10, 1), 0.7), np.eye(10)[:, :1]) == pytest.approx(0.6)
    assert expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    # Two bins: |0.2 − 0.5|·2 + |0.8 − 1|·2 over 4.
    assert expected_calibration_error([0.2, 0.2, 0.8, 0.8], [0, 1, 1, 1], bins=2) == pytest.approx(0.25)


def test_calibration_lowers_the_error() -> None:
    logits, targets = calibrated()
    held_logits, held_targets = calibrated(seed=1)
    raw = sigmoid(4 * held_logits)
    before = expected_calibration_error(raw, held_targets)
    by_temperature = apply_temperature(raw, fit_temperature(4 * logits, targets))
    by_isotonic = fit_isotonic(sigmoid(4 * logits), targets)(raw)
    assert before > 0.08
    assert expected_calibration_error(by_temperature, held_targets) < 0.02
    assert expected_calibration_error(by_isotonic, held_targets) < 0.02


def test_reliability_curve_counts_every_entry_once() -> None:
    logits, targets = calibrated(images=101)
    targets[:5] = np.nan
    for equal_count in (False, True):
        curve = reliability_curve(sigmoid(logits), targets, bins=10, equal_count=equal_count)
        assert curve.count.sum() == 96 * 4
        assert (np.diff(curve.score) > 0).all()
        assert curve.frequency @ curve.count == pytest.approx(np.nansum(targets))
    assert curve.count.max() - curve.count.min() <= 2
    with pytest.raises(ValueError, match="no known"):
        reliability_curve([0.5], [np.nan])
