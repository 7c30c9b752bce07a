"""The packaged graphs of `lite` give torch's results without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import intclip
from intclip.backbones import load_backbone
from intclip.errors import IntclipError
from intclip.inference import prebuilt
from intclip.inference.engines import OpenvinoEngine
from intclip.inference.graph import example_pixels
from intclip.labels import load_taxonomy
from intclip.labels.templates import class_texts

pytest.importorskip("openvino")
LABELS = "- joy\n- sorrow\n- a day at the beach\n"


@pytest.fixture(scope="module")
def found():
    graphs = prebuilt.find_prebuilt("lite")
    assert graphs is not None, (
        "the weights installed are others; write the graphs anew with intclip.inference.make_prebuilt"
    )
    return graphs


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path / "cache"))


def test_the_tower_computes_what_torch_does(found):
    backbone = load_backbone("lite")
    pixels = example_pixels(backbone, batch=3)
    outputs = OpenvinoEngine(found.tower().model)(pixels)
    expected = backbone.features(torch.from_numpy(pixels), outputs)
    assert set(outputs) == set(found.facts["features"])
    for name, values in expected.items():
        scale = float(values.abs().max())
        np.testing.assert_allclose(outputs[name], values.numpy(), rtol=0, atol=2e-5 * scale)


def test_texts_of_all_lengths_keep_their_places(found):
    texts = ["sea", "why people share photos of the sea", *(f"{'long ' * n}words {n}" for n in range(40)), "a"]
    np.testing.assert_allclose(found.embed(texts), load_backbone("lite").embed_texts(texts).numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("labels", [None, "proxy-intents", "file"])
def test_the_model_is_that_of_torch(labels, tmp_path):
    if labels == "file":
        (tmp_path / "own.yaml").write_text(LABELS)
        labels = str(tmp_path / "own.yaml")
    fast, slow = (intclip.load("lite", taxonomy=labels, engine=engine) for engine in ("openvino", "torch"))
    assert fast.card == slow.card
    pixels = np.random.default_rng(1).standard_normal((3, 3, 224, 224)).astype(np.float32)
    np.testing.assert_allclose(fast.predict_pixels(pixels), slow.predict_pixels(pixels), rtol=0, atol=1e-5)
    photo = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    label = fast.taxonomy.names[-1]
    np.testing.assert_allclose(fast.explain(photo, label).sight, slow.explain(photo, label).sight, rtol=0, atol=1e-3)


def test_a_first_prediction_needs_no_torch(tmp_path):
    (tmp_path / "own.yaml").write_text(LABELS)
    code = (
        "import sys, numpy, intclip\n"
        "for labels in (None, sys.argv[1]):\n"
        "    model = intclip.load('lite', engine='openvino', taxonomy=labels)\n"
        "    photo = numpy.zeros((9, 9, 3), dtype=numpy.uint8)\n"
        "    model.predict(photo)\n"
        "    model.explain(photo, model.taxonomy.names[0])\n"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "own.yaml")], capture_output=True, text=True)
    assert run.stdout.strip() == "False", run.stderr


def test_the_proxy_model_takes_the_same_tower(tmp_path):
    intclip.load("lite", engine="openvino")
    intclip.load("proxy", engine="openvino")
    assert len(list((tmp_path / "cache" / "towers").iterdir())) == 1


def test_words_that_the_tower_does_not_know_are_refused(tmp_path):
    (tmp_path / "own.yaml").write_text("- радость\n- печаль\n", encoding="utf-8")
    with pytest.raises(IntclipError, match="радость"):
        intclip.load("lite", taxonomy=tmp_path / "own.yaml", engine="openvino")


def test_labels_of_which_one_holds_are_converted(tmp_path):
    (tmp_path / "own.yaml").write_text(f"name: one\nexclusive: true\nclasses:\n{LABELS}")
    fast, slow = (intclip.load("lite", taxonomy=tmp_path / "own.yaml", engine=name) for name in ("openvino", "torch"))
    assert fast.card == slow.card
    pixels = np.zeros((2, 3, 224, 224), dtype=np.float32)
    found = fast.predict_pixels(pixels)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found, slow.predict_pixels(pixels), rtol=0, atol=1e-5)


def test_graphs_of_other_weights_are_not_used(tmp_path, monkeypatch):
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    facts = json.loads((prebuilt.FOLDER / prebuilt.WEIGHTS).read_text())
    (folder / prebuilt.WEIGHTS).write_text(json.dumps(facts | {"weights": "0" * 64}))
    monkeypatch.setattr(prebuilt, "FOLDER", folder)
    assert prebuilt.find_prebuilt("lite") is None
    assert prebuilt.find_prebuilt("lite2") is None


def test_filling_leaves_one_input(found):
    taxonomy = load_taxonomy("sentiment3")
    head = found.head("lite", taxonomy, class_texts(taxonomy, "fine"), 0.5)
    assert {port.get_any_name() for port in head.model.inputs} == {"pooled", "regions"}
