"""What the report of a folder holds."""

import numpy as np

from intclip.explain.report import per_mille, thresholds_per_mille


def test_a_label_holds_in_the_page_where_it_holds_by_the_model():
    generator = np.random.default_rng(0)
    thresholds = generator.uniform(0, 1, 10_000).astype(np.float32)
    near = thresholds + generator.normal(0, 4e-4, 10_000).astype(np.float32)  # whole per mille would tell many wrongly
    probabilities = np.clip(near, 0, 1)
    found, least = np.array(per_mille(probabilities, thresholds)), np.array(thresholds_per_mille(thresholds))
    np.testing.assert_array_equal(found >= least, probabilities >= thresholds)
    assert np.abs(found - 1000 * probabilities).max() <= 1.5
    assert per_mille(np.array([0.4996, 0.5]), np.array([0.5, 0.5])) == [499, 500]
