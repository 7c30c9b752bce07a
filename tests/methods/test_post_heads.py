"""Post heads: channels, their fusion, missing channels, the bundle."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logsumexp
from sklearn.feature_extraction.text import TfidfVectorizer

from fakes import TinyBackbone, tiny_taxonomy
from intclip.errors import BundleError
from intclip.inference.bundle import load_bundle, save_bundle
from intclip.methods.post_heads.heads import FittedHeads, fit_heads
from intclip.methods.post_heads.inputs import Inputs, count_terms, fit_word_counts
from intclip.methods.post_heads.model import PostHeads, PostHeadsOptions
from intclip.metrics import mean_average_precision
from intclip.training.crossval import fit_and_validate

K = 5
WORDS = ["beach sun", "mountain snow", "city night", "dog park", "birthday cake"]


def make(count: int, seed: int) -> tuple[dict[str, Inputs], np.ndarray]:
    """Make posts whose words determine labels 0–2 and whose photos determine labels 2–4."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, K)) < 0.4).astype(float)
    ways = np.random.default_rng(99).normal(size=(2, K, 16))
    inputs = {}
    for name, seen, way in (("text", [1, 1, 1, 0, 0], ways[0]), ("image", [0, 0, 1, 1, 1], ways[1])):
        x = (targets * seen) @ way + rng.normal(scale=1.5, size=(count, 16))
        texts = [
            " ".join(w for w, y, s in zip(WORDS, row, seen, strict=True) if y and s) or "nothing" for row in targets
        ]
        anchors = (targets * seen + rng.normal(size=targets.shape)).astype(np.float32)
        inputs[name] = Inputs({"dense": x.astype(np.float32)}, anchors, count_terms(texts) if name == "text" else None)
    return inputs, targets


@pytest.fixture(scope="module")
def fitted() -> FittedHeads:
    inputs, targets = make(90, 0)
    return fit_heads(inputs, targets, tiny_taxonomy(K))


def test_both_channels_are_better_than_either(fitted: FittedHeads) -> None:
    inputs, targets = make(200, 1)
    value = {mode: mean_average_precision(found, targets) for mode, found in fitted.logits(inputs).items()}
    assert value["both"] > max(value["text"], value["image"]) + 0.05


def test_a_channel_alone_is_the_model_that_was_fitted_on_it_alone(fitted: FittedHeads) -> None:
    inputs, targets = make(90, 0)
    other, _ = make(20, 2)
    alone = fit_heads({"text": inputs["text"]}, targets, tiny_taxonomy(K))
    one = {"text": other["text"]}
    np.testing.assert_allclose(fitted.logits(one)["text"], alone.logits(one)["text"], atol=1e-5)
    assert set(alone.thresholds) == {"text"}


def test_a_post_alone_scores_as_in_a_batch(fitted: FittedHeads) -> None:
    """Within the tolerance of `Predictor.predict`."""
    inputs, _ = make(12, 3)
    together = expit(fitted.logits(inputs)["both"])
    for row in range(12):
        alone = fitted.logits({name: channel.take([row]) for name, channel in inputs.items()})["both"]
        np.testing.assert_allclose(expit(alone[0]), together[row], rtol=0, atol=1e-5)


def test_blocks_are_unit_vectors_and_unknown_words_are_passed_over(fitted: FittedHeads) -> None:
    inputs, _ = make(30, 5)
    terms = inputs["text"].terms
    assert terms is not None
    blocks = fit_word_counts(terms)(terms, 30)
    assert set(blocks) == {"words", "letters"}
    for block in blocks.values():
        length = np.linalg.norm(block, axis=1)
        assert np.all((abs(length - 1) < 1e-5) | (length == 0))
    alone = inputs["text"].take([0])
    strange = Inputs(alone.blocks, alone.anchors, count_terms(["zzz qqq"]))
    assert np.isfinite(fitted.logits({"text": strange})["text"]).all()


def test_counted_blocks_are_scikit_learns_tf_idf() -> None:
    texts = [f"{first} {second}, {first}!" for first in WORDS for second in ("at noon", "with friends", "again")]
    terms = count_terms(texts)
    blocks = fit_word_counts(terms)(terms, len(texts))
    kinds: dict[str, dict[str, Any]] = {
        "words": {"analyzer": "word", "ngram_range": (1, 2), "stop_words": "english"},
        "letters": {"analyzer": "char_wb", "ngram_range": (3, 5)},
    }
    for kind, options in kinds.items():
        reference = TfidfVectorizer(**options, min_df=2, sublinear_tf=True)
        np.testing.assert_allclose(blocks[kind], reference.fit_transform(texts).toarray(), atol=1e-6)
        assert (
            fit_word_counts(terms.take(np.arange(6))).terms[kind]
            == reference.fit(texts[:6]).get_feature_names_out().tolist()
        )


def test_words_that_never_repeat_have_no_counts() -> None:
    assert not fit_word_counts(count_terms(["aaaa", "bbbb", "cccc"])).terms


def test_nested_figures_are_of_posts_that_were_not_seen() -> None:
    """Random labels: held-out ranking is no better than chance, even if heads fit their training posts."""
    inputs, targets = make(80, 7)
    noise = (np.random.default_rng(8).random((80, K)) < 0.4).astype(float)
    _, held_out = fit_and_validate({"text": inputs["text"]}, noise, tiny_taxonomy(K), folds=3)
    assert mean_average_precision(held_out["text"].probabilities, noise) < 0.55
    _, held_out = fit_and_validate(inputs, targets, tiny_taxonomy(K), folds=3)
    assert mean_average_precision(held_out["both"].probabilities, targets) > 0.6
    levels = {tuple(row) for row in held_out["both"].thresholds}
    assert len(levels) == 3  # each fold has its own


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_bundle_comes_back_as_it_was(exclusive: bool, tmp_path: Path) -> None:
    backbone = TinyBackbone()
    taxonomy = tiny_taxonomy(K)
    object.__setattr__(taxonomy, "exclusive", exclusive)
    rng = np.random.default_rng(1)
    targets = np.eye(K)[rng.integers(0, K, 60)] if exclusive else (rng.random((60, K)) < 0.4).astype(float)
    texts = [" ".join(WORDS[k] for k in np.flatnonzero(row)) or "nothing" for row in targets]
    options = PostHeadsOptions(channels=("image", "text"), text_encoder="backbone")
    method = PostHeads(backbone, taxonomy, options)
    method.encode_labels()
    pixels = torch.randn(60, 3, 24, 24, generator=torch.Generator().manual_seed(2))
    deep = backbone.features(pixels, ["deep"])
    inputs = {"image": method.photo_inputs(deep["deep"]), "text": method.text_inputs(texts)}
    heads = fit_heads(inputs, targets, taxonomy)
    method = method.with_fitted(heads)
    with torch.no_grad():
        read = {
            "both": deep | method.read_texts(texts),
            "image": deep,
            "text": method.read_texts(texts),
        }
        expected = heads.logits(inputs)
        for mode, features in read.items():
            np.testing.assert_allclose(method(features).logits, expected[mode], rtol=1e-4, atol=1e-4)
        extras = method(read["both"]).extras
        np.testing.assert_allclose(extras["text"], expected["text"], rtol=1e-4, atol=1e-4)
        falls = method(deep, maps=True).maps["fused"]
    # A region's value is the drop of the label's log-odds without it.
    cells = deep["deep"].clone()
    flat = cells.flatten(2)
    flat[:, :, 4] = (flat.sum(dim=2) - flat[:, :, 4]) / 8
    with torch.no_grad():
        without = method({"deep": cells}).logits.numpy()

    def log_odds(logits: np.ndarray) -> np.ndarray:
        logits = logits.astype(float)
        if not exclusive:
            return logits
        others = [logsumexp(np.delete(logits, k, axis=1), axis=1) for k in range(K)]
        return logits - np.stack(others, axis=1)

    fall = log_odds(expected["image"]) - log_odds(without)
    np.testing.assert_allclose(falls[:, :, 1, 1], fall, atol=2e-3)
    words = method.word_scores(texts[:5])
    np.testing.assert_allclose(words, log_odds(expected["text"][:5]), atol=1e-3)
    save_bundle(
        tmp_path / "b",
        method,
        thresholds=heads.thresholds["both"],
        channel_thresholds={name: heads.thresholds[name] for name in ("image", "text")},
    )
    bundle = load_bundle(tmp_path / "b")
    assert bundle.info.channels == ["image", "text"]
    again = PostHeads(backbone, taxonomy, PostHeadsOptions.model_validate(bundle.info.method.options))
    again.load_own_state({name: torch.from_numpy(array) for name, array in bundle.state.items()})
    with torch.no_grad():
        for mode, features in read.items():
            np.testing.assert_allclose(again.eval()(features).logits, method(features).logits, atol=1e-6, err_msg=mode)
    file = tmp_path / "b" / "bundle.json"
    content = json.loads(file.read_text())
    content["channel_thresholds"]["text"] = [0.5]
    file.write_text(json.dumps(content))
    with pytest.raises(BundleError, match="thresholds"):
        load_bundle(tmp_path / "b")
