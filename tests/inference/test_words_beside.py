"""Methods that use a photo's text: `predict(images, texts=…)` equals the method's own forward with words."""

import csv
import json

import numpy as np
import pytest
import torch

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.data.sample import Dataset, Sample
from intclip.errors import ImageError, IntclipError
from intclip.evaluation.evaluate import evaluate
from intclip.methods.base import Method
from intclip.methods.registry import build_method
from intclip.serving.batcher import Batcher
from tiny_models import THRESHOLDS, write_bundle

METHODS = {
    "intclip_words": {"context_length": 2, "aggregation": "cross_attention"},
    "intentonomy": {"hashtags": True},
}
TEXTS = ["joy with old friends", None, " ", "books by the water and a dog", "snow"]


def listening(name: str) -> Method:
    """Return a method whose words change probabilities far beyond rounding."""
    torch.manual_seed(3)
    method = build_method(name, TinyBackbone(), tiny_taxonomy(), METHODS[name])
    with torch.no_grad():
        for key, parameter in method.named_parameters():
            if parameter.requires_grad:
                parameter.add_((0.5 if key.startswith("words") else 0.02) * torch.randn_like(parameter))
    return method.eval()


@pytest.fixture(scope="module", params=METHODS)
def bundle(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / request.param
    return write_bundle(path, listening(request.param))


def forward(name: str, path, text) -> np.ndarray:
    """Compute (K,) with torch: features of one photo, and vectors of its words, one by one."""
    method = listening(name)
    backbone = method.backbone

    def vector(said: str) -> torch.Tensor:
        found = backbone.encode_text(backbone.tokenize([said]))[0]
        return found / found.norm() * len(found) ** 0.5

    with torch.no_grad():
        photo = read_image(path, min_side=DRAFT_FACTOR * backbone.image_size)
        features = backbone.features(backbone.preprocess(photo)[None], method.needs)
        if text and text.strip():
            words = torch.stack([vector(said) for said in (text, *text.split())])
            features |= {"words": words[None], "text": words[:1]}
        return method(features).logits.sigmoid()[0].numpy()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_words_reach_the_method_and_a_missing_text_is_none(bundle, photos, engine):
    model = intclip.load(bundle, engine=engine)
    assert (model.channels, model.alone) == (("image", "text"), ("image",))
    expected = np.stack([forward(bundle.name, path, text) for path, text in zip(photos, TEXTS, strict=True)])
    for size in (1, 2, 5):
        found = model.predict(photos, texts=TEXTS, batch_size=size)
        np.testing.assert_allclose([one.probabilities for one in found], expected, atol=1e-5)
    alone = np.stack([one.probabilities for one in model.predict(photos)])
    spoken = np.array([bool(text and text.strip()) for text in TEXTS])
    np.testing.assert_allclose(alone[~spoken], expected[~spoken], atol=1e-5)
    assert (np.abs(alone - expected).max(axis=1)[spoken] > 1e-3).all()
    assert found[0].labels == [
        n for n, p, t in zip(model.taxonomy.names, expected[0], THRESHOLDS, strict=True) if p >= t
    ]
    assert found[0].conflict is None  # neither channel is used without the other


def test_an_evaluation_reads_the_words_of_its_samples(bundle, photos, tmp_path):
    """Scores equal those of training and of `predict`; a photo-only model gets no words."""
    model = intclip.load(bundle, engine="torch")
    targets = np.eye(5, len(model.taxonomy.names), dtype=np.float32)
    rows = zip(photos, TEXTS, targets, strict=True)
    samples = [Sample(f"{number}", row, path, text) for number, (path, text, row) in enumerate(rows)]
    dataset = Dataset("posts", model.taxonomy, "multilabel", {"test": samples})
    found = evaluate(model, dataset, batch_size=2, draws=0).scores.probabilities
    expected = np.stack([one.probabilities for one in model.predict(photos, texts=TEXTS)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    exported = intclip.load(model.export(tmp_path / "model.onnx"))
    alone = np.stack([one.probabilities for one in model.predict(photos)])
    np.testing.assert_allclose(evaluate(exported, dataset, draws=0).scores.probabilities, alone, atol=1e-5)


def test_columns_of_pandas_are_posts(bundle, photos):
    """Regression: NaN as a text ended in a traceback, and a column's array of paths was taken for a photo."""
    pandas = pytest.importorskip("pandas")
    model = intclip.load(bundle, engine="torch")
    frame = pandas.DataFrame({"path": [str(path) for path in photos[:3]], "text": ["joy", None, "snow"]})
    expected = [one.probabilities for one in model.predict(photos[:3], texts=["joy", None, "snow"])]
    texts = [
        frame["text"],
        frame["text"].astype("string"),
        ["joy", float("nan"), "snow"],
        ["joy", np.float32("nan"), "snow"],
    ]
    for column in texts:
        found = model.predict(frame["path"].to_numpy(dtype=object), texts=column)
        np.testing.assert_array_equal([one.probabilities for one in found], expected)
    assert len(model.predict(np.array(frame["path"].tolist()))) == 3
    with pytest.raises(IntclipError, match=r"text 2 is 7\b"):
        model.predict(photos[:2], texts=["joy", 7])


def test_what_such_a_model_refuses(bundle, photos, tmp_path):
    model = intclip.load(bundle, engine="torch")
    with pytest.raises(ImageError, match="text 2"):
        model.predict([photos[0], None], texts=["joy", "joy"])
    kept = model.predict([photos[0], None, photos[1]], texts=["joy", "snow", None], errors="collect")
    assert [one.error is None for one in kept] == [True, False, True]
    np.testing.assert_allclose(kept[2].probabilities, forward(bundle.name, photos[1], None), atol=1e-5)
    with pytest.raises(IntclipError, match=r"photos.*texts"):
        model.predict(photos, texts=["joy"])
    with pytest.raises(IntclipError, match="text only together with a photo"):
        model.explain_words("joy", "class 0")
    exported = intclip.load(model.export(tmp_path / "model.xml", "openvino"))
    assert exported.channels == ("image",)
    np.testing.assert_allclose(
        exported.predict(photos[0])[0].probabilities, forward(bundle.name, photos[0], None), atol=1e-5
    )
    with pytest.raises(IntclipError, match="exported and uses only photos; load its bundle"):
        exported.predict(photos[0], texts="joy")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_with_words(bundle, photos, cli, tmp_path, kind):
    table = tmp_path / f"posts.{kind}"
    rows = [{"image": str(path), "text": text or ""} for path, text in zip(photos, TEXTS, strict=True)]
    with table.open("w", newline="") as stream:
        if kind == "csv":
            writer = csv.DictWriter(stream, ["image", "text"])
            writer.writeheader()
            writer.writerows(rows)
        else:
            stream.write("\n".join(map(json.dumps, rows)))
    code, out, err = cli("predict", table, "--model", bundle, "--json", "--engine", "torch")
    assert code == 0, err
    found = [list(row["scores"].values()) for row in json.loads(out)]
    expected = [forward(bundle.name, path, text) for path, text in zip(photos, TEXTS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    code, out, err = cli("predict", photos[0], "--text", TEXTS[0], "--model", bundle, "--json", "--engine", "torch")
    assert code == 0, err
    np.testing.assert_allclose(list(json.loads(out)[0]["scores"].values()), expected[0], atol=1e-5)


def test_the_queue_hands_words_on(bundle, photos):
    batcher = Batcher({"posts": intclip.load(bundle, engine="torch")}, max_batch=5)
    try:
        waiting = batcher.submit_all(list(zip(photos, TEXTS, strict=True)))
        found = [future.result(60).probabilities for future in waiting]
        with pytest.raises(IntclipError, match="only together with a photo"):
            batcher.submit(None, "joy")
    finally:
        batcher.close()
    expected = [forward(bundle.name, path, text) for path, text in zip(photos, TEXTS, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
