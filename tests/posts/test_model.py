"""Channels, their fusion, what a missing channel does, bundles of posts."""

import json

import numpy as np
import pytest

from fakes import tiny_taxonomy
from intclip.errors import BundleError, StorageError
from intclip.inference.post_bundle import PostBundle, load_post_bundle, save_posts
from intclip.posts.crossval import figures, nested
from intclip.posts.encoders import Raw
from intclip.posts.features import fit_blocks
from intclip.posts.model import fit_posts, mode_of
from intclip.posts.selection import mean_ap

K = 5
WORDS = ["beach sun", "mountain snow", "city night", "dog park", "birthday cake"]


def make(count: int, seed: int) -> tuple[dict[str, Raw], np.ndarray]:
    """Posts whose words tell labels 0–2 and whose photos tell labels 2–4."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((count, K)) < 0.4).astype(float)
    ways = np.random.default_rng(99).normal(size=(2, K, 16))
    raw = {}
    for name, seen, way in (("text", [1, 1, 1, 0, 0], ways[0]), ("image", [0, 0, 1, 1, 1], ways[1])):
        x = (targets * seen) @ way + rng.normal(scale=1.5, size=(count, 16))
        texts = [
            " ".join(w for w, y, s in zip(WORDS, row, seen, strict=True) if y and s) or "nothing" for row in targets
        ]
        anchors = (targets * seen + rng.normal(size=targets.shape)).astype(np.float32)
        raw[name] = Raw({"dense": x.astype(np.float32)}, anchors, texts if name == "text" else None)
    return raw, targets


@pytest.fixture(scope="module")
def fitted():
    raw, targets = make(90, 0)
    return fit_posts(raw, targets, tiny_taxonomy(K))


def test_both_channels_are_better_than_either(fitted):
    raw, targets = make(200, 1)
    value = {
        mode: mean_ap(fitted.probabilities({n: r for n, r in raw.items() if mode in (n, "both")}), targets)
        for mode in ("text", "image", "both")
    }
    assert value["both"] > max(value["text"], value["image"]) + 0.05


def test_a_channel_alone_is_the_model_that_was_fitted_on_it_alone(fitted):
    raw, targets = make(90, 0)
    other, _ = make(20, 2)
    alone = fit_posts({"text": raw["text"]}, targets, tiny_taxonomy(K))
    one = {"text": other["text"]}
    np.testing.assert_allclose(fitted.probabilities(one), alone.probabilities(one), atol=1e-9)
    assert set(alone.decisions) == {"text"}


def test_a_post_without_channels_is_refused():
    with pytest.raises(ValueError, match="words, a photo, or both"):
        mode_of({})


def test_a_post_alone_scores_as_in_a_batch(fitted):
    """Within what `Predictor.predict` promises."""
    raw, _ = make(12, 3)
    together = fitted.probabilities(raw)
    for row in range(12):
        alone = fitted.probabilities({name: channel.take([row]) for name, channel in raw.items()})
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-5)


def test_exclusive_labels_sum_to_one():
    raw, targets = make(60, 4)
    single = np.eye(K)[targets.argmax(axis=1)]
    model = fit_posts(raw, single, tiny_taxonomy(K), exclusive=True)
    np.testing.assert_allclose(model.probabilities(raw).sum(axis=1), 1, atol=1e-9)


def test_blocks_are_unit_vectors_and_unknown_words_are_passed_over():
    raw, _ = make(30, 5)
    blocks, own = fit_blocks(raw["text"])
    assert set(blocks.means) == {"dense", "words", "letters"}
    np.testing.assert_allclose(np.linalg.norm(own, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(blocks.transform(raw["text"]), own, atol=1e-6)
    strange = Raw({"dense": raw["text"].dense["dense"][:1]}, raw["text"].anchors[:1], ["zzz qqq"])
    assert np.isfinite(blocks.transform(strange)).all()


def test_words_that_never_repeat_leave_the_embedding_alone():
    raw, _ = make(3, 6)
    strange = Raw(raw["text"].dense, raw["text"].anchors, ["aaaa", "bbbb", "cccc"])
    assert set(fit_blocks(strange)[0].means) == {"dense"}


def test_nested_figures_are_of_posts_that_were_not_seen():
    """Random labels: held-out ranking is no better than chance, whatever the heads make of their own posts."""
    raw, _ = make(80, 7)
    noise = (np.random.default_rng(8).random((80, K)) < 0.4).astype(float)
    held_out = nested({"text": raw["text"]}, noise, tiny_taxonomy(K), folds=3)
    assert mean_ap(held_out.probabilities["text"], noise) < 0.55
    raw, targets = make(80, 7)
    held_out = nested(raw, targets, tiny_taxonomy(K), folds=3)
    found = figures(held_out.probabilities["both"], held_out.decisions["both"], targets, draws=50)
    assert set(found) == {"macro_f1", "micro_f1", "samples_f1", "mAP"}
    assert all(entry["low"] <= entry["high"] for entry in found.values())
    assert found["mAP"]["value"] > 0.6


def test_a_bundle_comes_back_as_it_was(fitted, tmp_path):
    raw, _ = make(10, 9)
    bundle = PostBundle(fitted, "lite", "minilm", [list(fitted.taxonomy.names)], {"text": {"mAP": 0.5}})
    save_posts(tmp_path / "b", bundle)
    again = load_post_bundle(tmp_path / "b")
    np.testing.assert_allclose(again.model.probabilities(raw), fitted.probabilities(raw), atol=1e-5)
    one = {"image": raw["image"]}
    np.testing.assert_allclose(again.model.probabilities(one), fitted.probabilities(one), atol=1e-5)
    assert again.metrics == {"text": {"mAP": 0.5}}
    assert again.model.channels["text"].votes == fitted.channels["text"].votes
    with pytest.raises(StorageError):
        save_posts(tmp_path / "b", bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "newer intclip"),
        ({"format": "other"}, "damaged"),
        ({"extra": 1}, "damaged"),
        ({"sentences": [["one"]]}, "do not agree"),
        ({"sharpness": {"text": None}}, "do not agree"),
        ({"backbone": "../x"}, "damaged"),
    ],
)
def test_a_bundle_that_contradicts_itself_is_refused(fitted, tmp_path, change, message):
    save_posts(tmp_path / "b", PostBundle(fitted, "lite", "minilm", [list(fitted.taxonomy.names)]))
    file = tmp_path / "b" / "posts.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BundleError, match=message) as caught:
        load_post_bundle(tmp_path / "b")
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_refused(fitted, tmp_path):
    save_posts(tmp_path / "b", PostBundle(fitted, "lite", "minilm", [list(fitted.taxonomy.names)]))
    file = tmp_path / "b" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError):
        load_post_bundle(tmp_path / "b")
