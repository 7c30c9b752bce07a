"""Heads, compared with scikit-learn; folds, selection, calibration."""

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.svm import SVC

from intclip.data.splitting import stratified_folds
from intclip.methods.post_heads.fusion import fit_logits, fit_sharpness, probabilities
from intclip.methods.post_heads.selection import ANCHORS, choose_head
from intclip.methods.post_heads.solver import GRIDS, Kernels, Solver, label_graph
from intclip.metrics import mean_average_precision


@pytest.fixture(scope="module")
def posts():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 12))
    targets = (rng.random((60, 3)) < 0.4).astype(float)
    x = targets @ centres + rng.normal(size=(60, 12))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x[:45], targets[:45], x[45:], targets[45:]


def fitted(name, posts, **params):
    x, y, other, _ = posts
    return Solver(x @ x.T, y, np.zeros((3, 3))).fit(name, tuple(params.items())).scores(Kernels(other @ x.T))


@pytest.mark.parametrize(("head", "gamma"), [("ridge", 0.0), ("kernel", 2.0)])
def test_ridge_is_kernel_ridge_on_centred_targets(posts, head, gamma):
    x, y, other, _ = posts
    params = {"gamma": gamma, "penalty": 0.7} if gamma else {"penalty": 0.7}
    kind = {"kernel": "rbf", "gamma": gamma / 2} if gamma else {"kernel": "linear"}
    reference = KernelRidge(alpha=0.7, **kind).fit(x, y - y.mean(axis=0)).predict(other) + y.mean(axis=0)
    np.testing.assert_allclose(fitted(head, posts, **params), reference, atol=1e-9)


def test_support_vectors_are_those_of_an_rbf_kernel(posts):
    x, y, other, _ = posts
    found = fitted("svm", posts, gamma=2.0, C=1.0)
    for k in range(3):
        reference = SVC(C=1.0, gamma=1.0, class_weight="balanced").fit(x, y[:, k])
        np.testing.assert_allclose(found[:, k], reference.decision_function(other), atol=1e-3)


def test_logistic_regression_in_the_posts_own_span_is_that_in_the_whole_space(posts):
    x, y, other, _ = posts
    found = fitted("logistic", posts, C=10.0)
    for k in range(3):
        reference = LogisticRegression(C=10.0, class_weight="balanced", tol=1e-8, max_iter=5000).fit(x, y[:, k])
        np.testing.assert_allclose(found[:, k], reference.decision_function(other), atol=0.05)


def test_posts_that_come_twice_have_the_same_logistic_regression(posts):
    """Their dot products are singular."""
    x, y, other, _ = posts
    twice = np.concatenate([x, x])
    solver = Solver(twice @ twice.T, np.concatenate([y, y]), np.zeros((3, 3)))
    scores = solver.fit("logistic", (("C", 5.0),)).scores(Kernels(other @ twice.T))
    np.testing.assert_allclose(scores, fitted("logistic", posts, C=10.0), atol=0.05)


def test_posts_without_a_vector_have_one_logistic_score():
    """Nothing is left of equal posts after centring."""
    targets = (np.random.default_rng(7).random((30, 2)) < 0.4).astype(float)
    head = Solver(np.zeros((30, 30)), targets, np.zeros((2, 2))).fit("logistic", (("C", 10.0),))
    assert np.ptp(head.scores(Kernels(np.zeros((4, 30)))), axis=0).max() == 0


def test_a_head_is_the_same_after_others_of_the_same_solver(posts):
    x, y, other, _ = posts
    shared, kernels = Solver(x @ x.T, y, np.zeros((3, 3))), Kernels(other @ x.T)
    for name, grid in GRIDS.items():
        for params in grid:
            found = shared.fit(name, params).scores(kernels)
            np.testing.assert_allclose(found, fitted(name, posts, **dict(params)), rtol=0, atol=1e-12)


def test_prototypes_are_the_mean_positive_against_the_mean_post(posts):
    x, y, other, _ = posts
    expected = np.stack([other @ (x[y[:, k] > 0].mean(axis=0) - x.mean(axis=0)) for k in range(3)], axis=1)
    np.testing.assert_allclose(fitted("prototypes", posts), expected, atol=1e-12)


def test_a_class_without_a_positive_scores_the_same_everywhere(posts):
    x, y, other, _ = posts
    none = y.copy()
    none[:, 1] = 0
    for head, params in (("ridge", {"penalty": 1.0}), ("logistic", {"C": 1.0}), ("svm", {"gamma": 1.0, "C": 1.0})):
        solver = Solver(x @ x.T, none, np.zeros((3, 3)))
        scores = solver.fit(head, tuple(params.items())).scores(Kernels(other @ x.T))
        assert np.ptp(scores[:, 1]) < 1e-12


def test_label_graph_flows_along_labels_seen_together():
    together = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=float)
    graph = label_graph(together, np.zeros((3, 3)))
    np.testing.assert_allclose(graph, [[0, 2 / 7, 0], [2 / 7, 0, 0], [0, 0, 0]])
    assert label_graph(np.ones((500, 8)), np.zeros((8, 8))).sum(axis=0).max() <= 1 + 1e-12


def test_mean_average_precision_is_scikit_learns():
    rng = np.random.default_rng(1)
    scores, targets = rng.random((50, 4)), (rng.random((50, 4)) < 0.3).astype(float)
    reference = np.mean([average_precision_score(targets[:, k], scores[:, k]) for k in range(4)])
    assert mean_average_precision(scores, targets) == pytest.approx(reference, abs=1e-12)


def test_folds_part_the_posts_and_spread_every_class():
    rng = np.random.default_rng(2)
    targets = (rng.random((203, 6)) < [0.5, 0.3, 0.1, 0.05, 0.03, 0.02]).astype(float)
    folds = list(stratified_folds(targets, 5, seed=0))
    tests = np.concatenate([test for _, test in folds])
    assert sorted(tests) == list(range(203))
    for train, test in folds:
        assert not set(train) & set(test)
        assert len(train) + len(test) == 203
    counts = np.array([targets[test].sum(axis=0) for _, test in folds])
    rarest = int(targets.sum(axis=0).argmin())
    assert np.ptp(counts[:, rarest]) <= 1
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(folds, stratified_folds(targets, 5, seed=0), strict=True))


def test_the_election_never_gives_class_sentences_more_than_half(posts):
    x, y, _, _ = posts
    rng = np.random.default_rng(3)
    perfect = y + rng.normal(scale=0.01, size=y.shape)
    choice = choose_head(x @ x.T, perfect, y, np.zeros((3, 3)), head="ensemble")
    assert choice.votes[ANCHORS] == 0.5
    assert sum(choice.votes.values()) == pytest.approx(1)
    useless = choose_head(x @ x.T, rng.normal(size=y.shape), y, np.zeros((3, 3)), head="ensemble")
    assert useless.votes.get(ANCHORS, 0) <= 0.2
    assert list(choice.ranking.values()) == sorted(choice.ranking.values(), reverse=True)


def test_calibration_finds_the_slope_and_bias_that_made_the_labels():
    rng = np.random.default_rng(4)
    scores = rng.normal(size=(1, 20_000, 2))
    truth = 1 / (1 + np.exp(-(1.5 * scores[0] + [-1.0, 0.5])))
    targets = (rng.random(truth.shape) < truth).astype(float)
    found = fit_logits(scores, targets)
    np.testing.assert_allclose(found.weights, 1.5, atol=0.08)
    np.testing.assert_allclose(found.bias, [-1.0, 0.5], atol=0.05)


def test_fusion_weighs_each_channel_by_class():
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(2, 5000, 2))
    odds = 2 * np.stack([scores[0, :, 0], scores[1, :, 1]], axis=1)
    targets = (rng.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(float)
    weights = fit_logits(scores, targets).weights
    np.testing.assert_allclose(weights, [[2, 0], [0, 2]], atol=0.15)
    shared = fit_logits(scores, targets, strength=1e9).weights
    np.testing.assert_allclose(shared[:, 0], shared[:, 1], atol=1e-4)


def test_sharpness_of_exclusive_classes():
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(20_000, 3))
    truth = probabilities(2.5 * logits, exclusive=True)
    drawn = (rng.random(20_000)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    targets = np.eye(3)[drawn]
    assert fit_sharpness(logits, targets) == pytest.approx(2.5, rel=0.05)
    np.testing.assert_allclose(truth.sum(axis=1), 1)
