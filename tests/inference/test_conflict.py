"""The conflict of photo and words: closed forms, bounds, an independent library."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from intclip.inference.conflict import conflict


def one(photo, words, **options):
    return float(conflict(np.array([photo], float), np.array([words], float), **options)[0])


def entropy(p):
    return -p * np.log2(p) - (1 - p) * np.log2(1 - p)


@pytest.mark.parametrize("exclusive", [False, True])
def test_it_is_0_where_both_agree_and_1_where_each_is_sure_of_something_else(exclusive):
    same = [0.2, 0.3, 0.5]
    assert one(same, same, exclusive=exclusive) == pytest.approx(0, abs=1e-12)
    assert one([1, 0, 0], [0, 1, 0], exclusive=exclusive) == pytest.approx(1)


def test_closed_form_of_one_label():
    """p = ½ against certainty: H(¾) − ½ = 0.3113 bits."""
    assert one([0.5], [1], exclusive=False) == pytest.approx(entropy(0.75) - 0.5)
    assert one([0.9], [0.1], exclusive=False) == pytest.approx(1 - entropy(0.9))
    # Two exclusive labels equal one binary label.
    assert one([0.9, 0.1], [0.2, 0.8], exclusive=True) == pytest.approx(one([0.9], [0.2], exclusive=False))


def test_it_is_scipys_divergence():
    rng = np.random.default_rng(0)
    photo, words = rng.dirichlet(np.ones(6), size=(2, 50))
    expected = jensenshannon(photo, words, base=2, axis=1) ** 2
    np.testing.assert_allclose(conflict(photo, words, exclusive=True), expected, atol=1e-12)
    pairs = [jensenshannon(np.stack([photo, 1 - photo]), np.stack([words, 1 - words]), base=2, axis=0) ** 2]
    np.testing.assert_allclose(conflict(photo, words, exclusive=False), pairs[0].max(axis=1), atol=1e-12)


@pytest.mark.parametrize("exclusive", [False, True])
def test_it_does_not_ask_which_is_which_and_stays_in_0_to_1(exclusive):
    rng = np.random.default_rng(1)
    photo, words = rng.dirichlet(np.full(4, 0.05), size=(2, 500))
    found = conflict(photo, words, exclusive=exclusive)
    np.testing.assert_allclose(found, conflict(words, photo, exclusive=exclusive), atol=1e-12)
    assert found.min() >= 0
    assert found.max() <= 1


def test_labels_on_which_both_agree_change_nothing():
    assert one([0.9, 0.02], [0.1, 0.02], exclusive=False) == pytest.approx(one([0.9], [0.1], exclusive=False))
