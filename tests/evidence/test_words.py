"""Weights of words for scores with known weights; text from posts is escaped."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import intclip
from intclip.errors import IntclipError, TaxonomyError
from intclip.evidence.words import (
    MOST_PARTS,
    WordEvidence,
    highlight,
    occlusion,
    part,
    shapley,
    word_evidence,
    words_page,
)

WEIGHTS = {"sea": (2.0, -1.0), "sun": (0.5, 0.25), "tax": (-1.5, 3.0)}


def linear(texts):
    """A bias and a sum over words: the weights are known."""
    return np.array([np.sum([WEIGHTS.get(w, (0, 0)) for w in t.split()] + [(0.1, -0.2)], axis=0) for t in texts])


def has_sea(texts):
    """Return 1 if the word occurs, however often; not a sum over words."""
    return np.array([[float("sea" in text.split())] for text in texts])


def test_occlusion_of_a_sum_gives_each_word_its_own_weight():
    parts = ["sun", "and", "sea", "tax"]
    whole, falls = occlusion(parts, linear)
    np.testing.assert_allclose(whole, [1.1, 2.05])
    np.testing.assert_allclose(falls, [WEIGHTS["sun"], (0, 0), WEIGHTS["sea"], WEIGHTS["tax"]], atol=1e-12)
    np.testing.assert_allclose(falls.sum(axis=0), (linear(["sun and sea tax"]) - linear([" "]))[0], atol=1e-12)


def test_shapley_values_of_a_sum_are_its_weights_and_share_what_is_there_twice():
    parts = ["sun", "and", "sea", "tax"]
    np.testing.assert_allclose(shapley(parts, linear, 1, orders=3), [0.25, 0, -1, 3], atol=1e-12)
    twice = ["sea", "oh", "sea"]
    assert not occlusion(twice, has_sea)[1].any()
    found = shapley(twice, has_sea, 0, orders=400)
    assert found.sum() == pytest.approx(1, abs=1e-6)  # captum adds up in float32
    np.testing.assert_allclose(found, [0.5, 0, 0.5], atol=0.1)
    np.testing.assert_array_equal(found, shapley(twice, has_sea, 0, orders=400))


def test_evidence_tells_what_its_weights_explain():
    found = word_evidence("tax  sea\nsun", "Holiday", 0, linear, "log-odds")
    assert [word for word, _ in found.words] == ["tax", "sea", "sun"]
    assert dict(found.words) == pytest.approx({"tax": -1.5, "sea": 2, "sun": 0.5})
    assert found.score == pytest.approx(1.1)
    assert found.probability == pytest.approx(1 / (1 + np.exp(-1.1)))
    assert word_evidence("sea", "Holiday", 0, linear, "cosine").probability is None
    added_up = word_evidence("tax sea sun", "Holiday", 0, linear, "log-odds", "shapley")
    assert sum(weight for _, weight in added_up.words) == pytest.approx(1.0)


@pytest.mark.parametrize(("text", "how", "message"), [("  \n ", "occlusion", "no words"), ("sea", "lime", "'lime'")])
def test_what_cannot_be_explained_is_told_in_one_line(text, how, message):
    with pytest.raises(IntclipError, match=message) as caught:
        word_evidence(text, "x", 0, linear, "log-odds", how)
    assert "\n" not in str(caught.value)


def test_a_long_text_is_explained_in_runs_of_words():
    words = [f"w{i}" for i in range(1000)]
    parts = part(" ".join(words))
    assert len(parts) == MOST_PARTS
    assert " ".join(parts).split() == words


def test_the_html_shows_the_text_and_nothing_of_the_post_becomes_markup():
    nasty = '<script>alert("x")</script> sea & "sun" tax\' <b onload=1>'
    words = [(word, weight) for word, weight in zip(nasty.split(), [3, 2, 0.01, -1, -3, 1, 0.5], strict=False)]
    evidence = WordEvidence("<i>Holiday</i>", 0.5, 0.1, "log-odds", words)
    tags, text = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append((tag, dict(attrs)))

        def handle_data(self, data):
            text.append(data)

    Reader().feed(highlight(evidence))
    assert {tag for tag, _ in tags} == {"mark"}
    assert "".join(text) == " ".join(word for word, _ in words)
    titles = [attributes["title"] for _, attributes in tags]
    assert titles == [f"{weight:+.3f} log-odds" for _, weight in words if abs(weight) > 0.1]
    depth = [float(re.search(r"([\d.]+)\)", attributes["style"])[1]) for _, attributes in tags]
    assert depth[0] == max(depth) == depth[3]
    page = words_page(evidence)
    assert "<script" not in page
    assert "&lt;i&gt;Holiday" in page


def test_no_words_of_weight_leave_the_text_plain():
    assert highlight(WordEvidence("x", None, 0, "cosine", [("a", 0.0), ("<b>", 0.0)])) == "a &lt;b&gt;"


def test_a_zero_shot_model_tells_which_words_are_near_a_label():
    model = intclip.load("lite", engine="torch")
    found = model.explain_words("we finally watched the sunset over the mountains, taxes are due", "Natural beauty")
    weights = {word.strip(","): weight for word, weight in found.words}
    assert max(weights, key=weights.__getitem__) in ("sunset", "mountains")
    assert weights["taxes"] < 0
    assert found.unit == "cosine"
    assert found.probability is None
    assert -1 <= found.score <= 1
    whole, without = model.word_scores(["sunset over mountains", "over mountains"])
    k = model.taxonomy.index("Natural beauty")
    found = model.explain_words("sunset over mountains", "Natural beauty")
    assert found.words[0][1] == pytest.approx(whole[k] - without[k], abs=1e-6)
    with pytest.raises(TaxonomyError):
        model.explain_words("sunset", "no such label")


def test_a_model_of_photos_alone_says_so():
    with pytest.raises(IntclipError, match="proxy"):
        intclip.load("proxy", engine="torch").word_scores(["sea"])
