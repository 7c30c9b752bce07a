"""Scores of sentences, compared with scikit-learn, by hand, and on items of a dataset."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, label_ranking_average_precision_score

from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError, TaxonomyError
from intclip.evaluation.sentences import score_dataset, score_texts
from intclip.labels.score import join_descriptions, score_forms


@pytest.fixture
def problem(five_classes):
    """Random items, targets and texts in one space."""
    rng = np.random.default_rng(4)
    words = {text: rng.normal(size=6) for form in five_classes.sentence_forms.values() for text in form}
    targets = (rng.random((40, 5)) < 0.3).astype(np.float32)
    return rng.normal(size=(40, 6)), targets, lambda texts: np.stack([words[text] for text in texts])


def cosines(items, words):
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (items, words)]
    return unit[0] @ unit[1].T


def test_against_scikit_learn(five_classes, problem):
    items, targets, encode = problem
    (score,) = score_forms(five_classes, items, targets, encode, ["11-15"])
    cos = cosines(items, encode(five_classes.sentences("11-15")))
    aps = [average_precision_score(targets[:, k], cos[:, k]) for k in range(5)]
    assert score.mAP == pytest.approx(np.mean(aps), abs=1e-12)
    assert [row["AP"] for row in score.per_class.values()] == pytest.approx(aps, abs=1e-12)
    labelled = targets.any(axis=1)
    expected = label_ranking_average_precision_score(targets[labelled], cos[labelled])
    assert score.ranking == pytest.approx(expected, abs=1e-12)
    counts = targets.sum(axis=0).astype(int)
    predicted = np.stack([cos[:, k] >= np.sort(cos[:, k])[-n] for k, n in enumerate(counts)], axis=1)
    assert score.macro_f1 == pytest.approx(f1_score(targets, predicted, average="macro"), abs=1e-12)
    assert [row["support"] for row in score.per_class.values()] == counts.tolist()


def test_a_perfect_and_a_useless_form(five_classes):
    """Items equal their own class's text in one form, and the next class's in the other."""
    here, there = np.eye(5), np.roll(np.eye(5), 1, axis=1)
    forms = {**five_classes.sentence_forms, "3-5": tuple("abcde"), "6-9": tuple("vwxyz")}
    taxonomy = type(five_classes)(**{**vars(five_classes), "sentence_forms": forms})
    vectors = {**dict(zip("abcde", here, strict=True)), **dict(zip("vwxyz", there, strict=True))}
    good, bad = score_forms(
        taxonomy, np.eye(5), np.eye(5), lambda texts: np.stack([vectors[t] for t in texts]), ["3-5", "6-9"]
    )
    assert (good.mAP, good.macro_f1, good.ranking) == (1, 1, 1)
    assert bad.ranking < 0.5
    assert bad.mAP < 0.5


def test_unknown_labels_count_nowhere(five_classes, problem):
    items, targets, encode = problem
    targets[:10, 0] = np.nan
    targets[20:, 1] = 0
    (score,) = score_forms(five_classes, items, targets, encode, ["6-9"])
    cos = cosines(items, encode(five_classes.sentences("6-9")))
    assert score.per_class["class 0"]["AP"] == pytest.approx(average_precision_score(targets[10:, 0], cos[10:, 0]))


def test_a_class_without_positives_is_left_out_of_the_mean(five_classes, problem):
    items, targets, encode = problem
    targets[:, 2] = 0
    (score,) = score_forms(five_classes, items, targets, encode, ["6-9"])
    rest = [row["AP"] for name, row in score.per_class.items() if name != "class 2"]
    assert np.isnan(score.per_class["class 2"]["AP"])
    assert score.mAP == pytest.approx(np.mean(rest))


def test_nothing_is_labelled(five_classes, problem):
    items, targets, encode = problem
    with pytest.raises(DatasetError, match="tiny"):
        score_forms(five_classes, items, np.zeros_like(targets), encode, ["6-9"])


def test_an_unknown_form(five_classes, problem):
    items, targets, encode = problem
    with pytest.raises(TaxonomyError, match="'long'"):
        score_forms(five_classes, items, targets, encode, ["long"])


def test_join_descriptions():
    labels = {"a": np.array([1, 0], np.float32), "b": np.array([0, 1], np.float32)}
    texts, targets = join_descriptions({"b": "two", "a": ["one", "more"], "c": "no labels", "d": " "}, labels, "d.json")
    assert texts == ["two", "one more"]
    np.testing.assert_array_equal(targets, [[0, 1], [1, 0]])
    with pytest.raises(DatasetError, match=r"d\.json.*'a'.*7"):
        join_descriptions({"a": 7}, labels, "d.json")
    with pytest.raises(DatasetError, match=r"d\.json"):
        join_descriptions({"z": "text"}, labels, "d.json")


@pytest.fixture
def dataset(five_classes, tmp_path):
    from skimage import data
    from skimage.io import imsave

    rng = np.random.default_rng(0)
    samples = []
    for index, name in enumerate(("astronaut", "coffee", "chelsea", "rocket")):
        imsave(tmp_path / f"{name}.png", getattr(data, name)()[::8, ::8])
        targets = (rng.random(5) < 0.5).astype(np.float32)
        targets[index] = 1
        samples.append(Sample(name, targets, tmp_path / f"{name}.png", f"a text about {name}"))
    samples.append(Sample("gone", np.ones(5, np.float32), tmp_path / "gone.png", None))
    return Dataset("four", five_classes, "multilabel", {"val": samples})


def test_photos_of_a_dataset(five_classes, tiny_backbone, dataset):
    found = score_dataset(five_classes, dataset, "val", tiny_backbone, ["3-5", "fine"], photos=True)
    assert (found.items, found.left_out) == (4, 1)
    from PIL import Image

    pixels = tiny_backbone.pixels([Image.open(s.image).convert("RGB") for s in dataset.splits["val"][:4]])
    items = tiny_backbone.encode_image(pixels).numpy()
    expected = score_forms(
        five_classes,
        items,
        dataset.targets("val")[:4],
        lambda words: tiny_backbone.encode_text(tiny_backbone.tokenize(words)).numpy(),
        ["3-5", "fine"],
    )
    for score, other in zip(found.forms, expected, strict=True):
        assert score.mAP == pytest.approx(other.mAP, abs=1e-6)


def test_texts_of_a_dataset_and_classes_in_another_order(five_classes, tiny_backbone, dataset):
    found = score_dataset(five_classes, dataset, "val", tiny_backbone, ["3-5"], photos=False)
    assert (found.items, found.left_out) == (4, 1)
    turned = type(five_classes)(
        **{
            **vars(five_classes),
            "names": five_classes.names[::-1],
            "sentence_forms": {form: words[::-1] for form, words in five_classes.sentence_forms.items()},
        }
    )
    again = score_dataset(turned, dataset, "val", tiny_backbone, ["3-5"], photos=False)
    assert list(again.forms[0].per_class) == list(turned.names)
    for name, row in found.forms[0].per_class.items():
        assert again.forms[0].per_class[name] == pytest.approx(row)


def test_wrong_splits_and_labels(five_classes, tiny_backbone, dataset):
    with pytest.raises(DatasetError, match=r"four.*'test'.* val"):
        score_dataset(five_classes, dataset, "test", tiny_backbone, ["fine"], photos=True)
    other = type(five_classes)(**{**vars(five_classes), "names": ("x", *five_classes.names[1:])})
    with pytest.raises(TaxonomyError, match=r"tiny.*'x'"):
        score_dataset(other, dataset, "val", tiny_backbone, ["fine"], photos=True)
    textless = Dataset("t", five_classes, "multilabel", {"val": [Sample("a", np.ones(5, np.float32))]})
    with pytest.raises(DatasetError, match=r"^t .*val"):
        score_dataset(five_classes, textless, "val", tiny_backbone, ["fine"], photos=False)


def test_long_texts_are_averaged_over_their_parts(five_classes, tiny_backbone):
    texts = ["short one", "word " * 500 + "nature", "another text of middle length here", "love " * 80, "sea"]
    targets = np.eye(5, dtype=np.float32)
    found = score_texts(five_classes, texts, targets, tiny_backbone, ["3-5"])
    items = tiny_backbone.embed_texts(texts, long="average").numpy()
    cosines = items @ tiny_backbone.embed_texts(five_classes.sentences("3-5")).numpy().T
    expected = [1 / (1 + (cosines[:, k] > cosines[k, k]).sum()) for k in range(5)]  # each class has one positive
    assert [row["AP"] for row in found.forms[0].per_class.values()] == pytest.approx(expected)


def test_score_texts(five_classes, tiny_backbone):
    texts = [f"text {i} about nature" for i in range(8)]
    targets = np.eye(5, dtype=np.float32)[np.arange(8) % 5]
    seen = []
    found = score_texts(
        five_classes, texts, targets, tiny_backbone, ["3-5"], on_progress=lambda d, t: seen.append((d, t))
    )
    assert found.items == 8
    assert seen == [(8, 8)]
    assert 0 < found.forms[0].mAP <= 1
