"""A backbone is converted once for all labels and methods, and a model has one network in torch."""

import numpy as np
import pytest
import torch

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.errors import IntclipError
from intclip.inference import export
from tiny_models import reference_probabilities, write_bundle

OTHER_LABELS = "- joy\n- sorrow\n- a day at the beach\n"


@pytest.fixture
def conversions(monkeypatch):
    """Record the formats of towers converted from now on."""
    found = []
    convert = export.convert_tower

    def counted(method, format):
        found.append(format)
        return convert(method, format)

    monkeypatch.setattr(export, "convert_tower", counted)
    return found


@pytest.fixture
def networks(monkeypatch):
    """Record the backbones built from now on."""
    found = []

    def build(name, checkpoint, split):
        found.append(TinyBackbone())
        return found[-1]

    monkeypatch.setitem(registry.BUILDERS, "tiny", build)
    return found


@pytest.mark.parametrize("engine", ["openvino", "onnx"])
def test_one_tower_serves_all_labels_and_methods(engine, conversions, bundle_path, photos, tmp_path, caplog):
    caplog.set_level("INFO")
    labels = tmp_path / "labels.yaml"
    labels.write_text(OTHER_LABELS)
    first = intclip.load("zero-shot:tiny", taxonomy=tiny_taxonomy(), engine=engine)
    second = intclip.load("zero-shot:tiny", taxonomy=labels, engine=engine)
    trained = intclip.load(bundle_path, engine=engine)
    assert conversions == [engine]
    assert caplog.text.count("converting ") == 1
    found = np.stack([p.probabilities for p in trained.predict(photos)])
    np.testing.assert_allclose(found, reference_probabilities(photos), atol=1e-5, rtol=0)
    for model, taxonomy in ((first, tiny_taxonomy()), (second, labels)):
        expected = intclip.load("zero-shot:tiny", taxonomy=taxonomy, engine="torch", device="cpu").predict(photos)
        for ours, theirs in zip(model.predict(photos), expected, strict=True):
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-5, rtol=0)


def test_weights_of_the_same_name_and_other_content_are_another_tower(conversions, monkeypatch, photos, tmp_path):
    labels = tmp_path / "labels.yaml"
    labels.write_text(OTHER_LABELS)
    intclip.load("zero-shot:tiny", taxonomy=tiny_taxonomy(), engine="openvino")
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone(seed=1))
    found = intclip.load("zero-shot:tiny", taxonomy=labels, engine="openvino").predict(photos[0])
    expected = intclip.load("zero-shot:tiny", taxonomy=labels, engine="torch", device="cpu").predict(photos[0])
    assert conversions == ["openvino"] * 2
    np.testing.assert_allclose(found[0].probabilities, expected[0].probabilities, atol=1e-5)


def test_a_tower_that_is_lost_or_damaged_is_made_anew(conversions, bundle_path, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path))
    expected = intclip.load(bundle_path, engine="openvino").predict(photos[0])[0].probabilities
    for file in (tmp_path / "towers").rglob("model.xml"):
        file.write_text("<net")
    found = intclip.load(bundle_path, engine="openvino").predict(photos[0])[0].probabilities
    np.testing.assert_array_equal(found, expected)
    assert conversions == ["openvino"] * 2


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_a_model_has_one_network_whatever_it_is_asked(engine, networks, photos, tmp_path):
    bundle = write_bundle(tmp_path / "bundle")
    networks.clear()
    model = intclip.load(bundle, engine=engine, device="cpu")
    model.predict(photos)
    model.explain(photos[0], "class 1")
    model.explain(photos[0], "class 1", kind="positive")
    model.engine(embedding=True)
    assert model.method() is model.method()
    # Loading for OpenVINO converts and then drops the network; `kind="positive"` needs it again.
    assert len(networks) == (1 if engine == "torch" else 2)


@pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
def test_embeddings_are_the_backbone_s_on_every_engine(engine, bundle_path, photos):
    model = intclip.load(bundle_path, engine=engine, device="cpu")
    pixels = np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32)
    found = model.engine(embedding=True)(pixels)["embedding"]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(TinyBackbone().encode_image(torch.from_numpy(pixels)), dim=1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_exported_files_hold_no_embedding_and_say_so(bundle_path, tmp_path):
    path = intclip.load(bundle_path, engine="openvino").export(tmp_path / "model.xml", "openvino", maps=True)
    with pytest.raises(IntclipError, match="without embeddings"):
        intclip.load(path).engine(embedding=True)


def test_evidence_with_gradients_after_a_prediction_in_torch(bundle_path, photos):
    """Values that a method caches in prediction are used in Grad-CAM's gradients."""
    model = intclip.load(bundle_path, engine="torch", device="cpu")
    model.predict(photos[0])
    assert model.explain(photos[0], "class 1", kind="gradcam").fused.max() <= 1
