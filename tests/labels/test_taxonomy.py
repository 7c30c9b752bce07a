"""The Taxonomy: lookup, levels, lifting, and its JSON form."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from intclip.errors import TaxonomyError
from intclip.labels import Taxonomy, builtin_taxonomies, load_taxonomy

RULES = ("max", "noisy-or", "sum")
TREE = load_taxonomy("intentonomy")


@pytest.mark.parametrize(
    ("label", "index"),
    [("Natural beauty", 19), ("NatBeauty", 19), ("natbeauty", 19), ("  natural BEAUTY ", 19), ("Harmony", 13)],
)
def test_index_takes_names_and_aliases_in_any_case(label, index):
    assert TREE.index(label) == index


def test_index_suggests_the_nearest_name():
    with pytest.raises(TaxonomyError, match=r"'Natural beuty'.*did you mean 'Natural beauty'"):
        TREE.index("Natural beuty")
    with pytest.raises(TaxonomyError, match=r"'Attractive, fastidious', .*18"):
        TREE.index("qqq")
    with pytest.raises(TaxonomyError, match=r"'negative', 'neutral', 'positive'$"):
        load_taxonomy("sentiment3").index("joy")


def test_unknown_form_and_level_are_named():
    with pytest.raises(TaxonomyError, match=r"'7-8'.*fine, consolidated"):
        TREE.sentences("7-8")
    with pytest.raises(TaxonomyError, match=r"'genus'.*0 intent, 1 group, 2 super-category"):
        TREE.lift(np.zeros((1, 28)), "genus")
    with pytest.raises(TaxonomyError, match="max, noisy-or, sum"):
        TREE.lift(np.zeros((1, 28)), 1, "mean")
    with pytest.raises(TaxonomyError, match=r"\(N, 28\).*\(2, 3\)"):
        TREE.lift(np.zeros((2, 3)), 1)


def test_lift_by_hand(five_classes):
    # classes 0, 2, 4 are below "group 0", classes 1, 3 below "group 1"
    p = np.array([[0.1, 0.5, 0.2, 0.5, 0.4]])
    np.testing.assert_allclose(five_classes.lift(p, "group"), [[0.4, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(five_classes.lift(p, 1, "noisy-or"), [[1 - 0.9 * 0.8 * 0.6, 0.75]], rtol=1e-6)
    np.testing.assert_allclose(five_classes.lift(p, 1, "sum"), [[0.7, 1.0]], rtol=1e-6)
    np.testing.assert_allclose(five_classes.lift(p, "class"), p, rtol=1e-6)
    assert five_classes.lift(p, 1).dtype == np.float32


def test_unknown_children_leave_their_parent_unknown_unless_it_is_certain(five_classes):
    targets = np.array([[np.nan, 0, 1, 0, 0], [np.nan, np.nan, 0, 0, 0.5]])
    for rule in RULES:
        np.testing.assert_array_equal(five_classes.lift(targets, 1, rule)[0], [1, 0])
        assert np.isnan(five_classes.lift(targets, 1, rule)[1]).all()


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, (3, 28), elements=st.floats(0, 1)), st.sampled_from(RULES))
def test_levels_are_consistent(p, rule):
    """A parent is at least as probable as each descendant, and one step up equals two steps."""
    groups, supers = TREE.lift(p, 1, rule), TREE.lift(p, 2, rule)
    tolerance = 1e-6
    for k, name in enumerate(TREE.names):
        group, above = TREE.parents[name]
        g = groups[:, TREE.levels["group"].index(group)]
        s = supers[:, TREE.levels["super-category"].index(above)]
        assert (g >= p[:, k] - tolerance).all()
        assert (s >= g - tolerance).all()
    for j, above in enumerate(TREE.levels["super-category"]):
        below = [groups[:, i] for i, g in enumerate(TREE.levels["group"]) if (g, above) in TREE.parents.values()]
        stacked = np.stack(below, axis=1).astype(np.float64)
        two_steps = {
            "max": stacked.max(axis=1),
            "noisy-or": 1 - (1 - stacked).prod(axis=1),
            "sum": np.minimum(stacked.sum(axis=1), 1),
        }[rule]
        np.testing.assert_allclose(supers[:, j], two_steps, atol=1e-5)


def test_exclusive_probabilities_stay_a_distribution():
    emotions = load_taxonomy("mikels8")
    p = np.random.default_rng(0).dirichlet(np.ones(8), size=20)
    np.testing.assert_allclose(emotions.lift(p, "polarity", "sum").sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("name", builtin_taxonomies())
def test_round_trip_through_json(name):
    taxonomy = load_taxonomy(name)
    assert Taxonomy.from_dict(json.loads(json.dumps(taxonomy.to_dict()))) == taxonomy


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("parents"), "incomplete or malformed"),
        (lambda d: d.update(levels=[]), "incomplete or malformed"),
        (lambda d: d.update(layout=99), "layout 99"),
        (lambda d: d["sentences"]["11-15"].pop(), "11-15.* 27 .* 28 "),
        (lambda d: d["parents"].pop("Harmony"), "'Harmony'"),
        (lambda d: d["parents"].update(Harmony=["Finances", "Self-fulfill"]), "'Finances'"),
        (lambda d: d["levels"][1]["classes"].append("Finances"), "group"),
        (lambda d: d["aliases"].update(Nat="Nature"), "'Nat'.*'Nature'"),
    ],
)
def test_a_damaged_dict_is_refused(change, message):
    content = TREE.to_dict()
    change(content)
    with pytest.raises(TaxonomyError, match=message):
        Taxonomy.from_dict(content)
