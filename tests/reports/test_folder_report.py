"""Content of a folder's report."""

import numpy as np

from intclip.reports.entries import per_mille, thresholds_per_mille


def test_a_label_holds_in_the_page_where_it_holds_by_the_model():
    generator = np.random.default_rng(0)
    thresholds = generator.uniform(0, 1, 10_000).astype(np.float32)
    near = thresholds + generator.normal(0, 4e-4, 10_000).astype(np.float32)  # whole per mille would misplace many
    probabilities = np.clip(near, 0, 1)
    found, least = np.array(per_mille(probabilities, thresholds)), np.array(thresholds_per_mille(thresholds))
    np.testing.assert_array_equal(found >= least, probabilities >= thresholds)
    assert np.abs(found - 1000 * probabilities).max() <= 1.5
    assert per_mille(np.array([0.4996, 0.5]), np.array([0.5, 0.5])) == [499, 500]


def test_of_labels_that_exclude_each_other_the_page_has_the_model_s():
    """Two may be equal when rounded; the page uses the first maximum."""
    thresholds = np.full(3, 0.4, dtype=np.float32)
    for probabilities in ([0.4003, 0.4004, 0.1993], [0.4004, 0.4003, 0.1993], [0.3335, 0.33345, 0.33305]):
        found = per_mille(np.array(probabilities), thresholds, exclusive=True)
        assert np.argmax(found) == np.argmax(probabilities)
        np.testing.assert_allclose(found, np.multiply(probabilities, 1000), atol=1.5)
