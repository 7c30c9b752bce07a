"""Exported files give the model's outputs in every reader."""

import json
import pickle
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.errors import BundleError, IntclipError, StorageError
from tiny_models import THRESHOLDS, reference_probabilities, tiny_known

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict_onnx.py"


@pytest.fixture(scope="module")
def model(bundle_path, tmp_path_factory):
    with tiny_known() as patch:
        patch.setenv("INTCLIP_CACHE", str(tmp_path_factory.mktemp("model-cache")))
        yield intclip.load(bundle_path, engine="openvino")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """The model as ONNX and OpenVINO, the latter with its maps."""
    folder = tmp_path_factory.mktemp("exported")
    with tiny_known():
        return {
            "onnx": model.export(folder / "model.onnx"),
            "openvino": model.export(folder / "model.xml", "openvino", maps=True),
        }


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_loaded_export_gives_the_model_s_numbers(files, photos, format, batch_size):
    exported = intclip.load(files[format])
    with pytest.raises(IntclipError, match=str(files[format])):
        intclip.load(files[format], checkpoint="RN101.pt")
    np.testing.assert_array_equal(exported.thresholds, np.float32(THRESHOLDS))
    assert exported.taxonomy == tiny_taxonomy()
    found = np.stack([p.probabilities for p in exported.predict(photos, batch_size=batch_size)])
    np.testing.assert_allclose(found, reference_probabilities(photos), atol=1e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_example_without_intclip_prints_the_same_numbers(files, photos, model, tmp_path, batch_size):
    """In a process that cannot import intclip, with the photos as one batch."""
    photos = photos[:batch_size]
    run = subprocess.run(
        [sys.executable, "-I", str(EXAMPLE), str(files["onnx"]), *map(str, photos)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    exact = intclip.load(files["onnx"]).predict(photos, batch_size=batch_size)
    torch_s = reference_probabilities(photos)
    for row, ours, compiled, reference in zip(rows, exact, model.predict(photos), torch_s, strict=True):
        assert row["source"] == ours.source
        assert row["labels"] == ours.labels == compiled.labels
        assert row["scores"] == ours.scores, "the same file on the same engine: not one bit differs"
        assert row["scores"] == pytest.approx(compiled.scores, abs=1e-5)
        assert list(row["scores"].values()) == pytest.approx(reference, abs=1e-5)


def test_the_example_gives_the_most_probable_label_where_one_holds(photos, tmp_path, monkeypatch):
    """With exclusive labels a photo has exactly one, even if all are equally probable and below their thresholds."""
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    alike = replace(tiny_taxonomy(), exclusive=True, sentence_forms={"11-15": ("joy",) * 5})
    model = intclip.load("zero-shot:tiny", taxonomy=alike, engine="onnx")
    path = model.export(tmp_path / "one.onnx")
    command = [sys.executable, "-I", str(EXAMPLE), str(path), *map(str, photos)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [json.loads(line)["labels"] for line in run.stdout.splitlines()]
    predictions = intclip.load(path).predict(photos)
    assert rows == [prediction.labels for prediction in predictions]
    assert max(max(prediction.probabilities) for prediction in predictions) < 0.5, "thresholds would give none"


def test_the_example_says_how_it_is_called():
    run = subprocess.run([sys.executable, "-I", str(EXAMPLE)], capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip().splitlines()[-1]) == (
        1, "python examples/predict_onnx.py lite.onnx photo.jpg …"
    )  # fmt: skip


def test_the_example_is_short_and_knows_nothing_of_intclip():
    code = EXAMPLE.read_text()
    assert len(code.splitlines()) <= 45
    assert "import intclip" not in code


def test_the_card_is_in_the_files(files):
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    cards = [json.loads(session.get_modelmeta().custom_metadata_map["intclip"])]
    core = openvino.Core().read_model(files["openvino"])
    cards.append(json.loads(core.get_rt_info("intclip").astype(str)))
    for card in cards:
        assert card["labels"] == list(tiny_taxonomy().names)
        assert card["thresholds"] == pytest.approx(THRESHOLDS)
        assert card["preprocessing"] == TinyBackbone.preprocess.model_dump(mode="json")
        assert card["maps"] == ["fused", "sight", "semantic"]
    assert [port.name for port in session.get_outputs()] == ["probabilities", "logits"]
    assert session.get_inputs()[0].shape[1:] == [3, 24, 24]
    assert not isinstance(session.get_inputs()[0].shape[0], int), "the batch is free"


def test_maps_are_exported_on_demand(files, photos, model, tmp_path):
    ours = model.explain(photos[0], "class 2")
    theirs = intclip.load(files["openvino"]).explain(photos[0], "class 2")
    np.testing.assert_allclose(theirs.fused, ours.fused, atol=1e-4)
    with pytest.raises(IntclipError, match="without evidence maps"):
        intclip.load(files["onnx"]).explain(photos[0], "class 2")
    plain = model.export(tmp_path / "plain.xml", "openvino")
    assert len(openvino.Core().read_model(plain).outputs) == 2
    # The model itself is unchanged.
    np.testing.assert_array_equal(model.explain(photos[0], "class 2").fused, ours.fused)


def test_an_export_can_be_exported_again(files, tmp_path, photos):
    again = intclip.load(files["openvino"]).export(tmp_path / "again.xml", "openvino")
    found = np.stack([p.probabilities for p in intclip.load(again).predict(photos)])
    np.testing.assert_allclose(found, reference_probabilities(photos), atol=1e-5, rtol=0)
    with pytest.raises(IntclipError, match="exported graph"):
        intclip.load(files["openvino"]).export(tmp_path / "again.onnx")


def test_the_command_converts_to_the_format_asked_for_only(cli, bundle_path, own_cache, tmp_path, monkeypatch):
    monkeypatch.setattr("intclip.inference.export.to_openvino", lambda *_, **__: pytest.fail("converted for OpenVINO"))
    code, out, _ = cli("export", bundle_path, "--out", tmp_path / "model.onnx")
    assert code == 0
    assert "model.onnx" in out


def test_maps_that_are_not_there_are_not_left_out_in_silence(model, tmp_path):
    plain = intclip.load(model.export(tmp_path / "plain.xml", "openvino"))
    with pytest.raises(IntclipError, match="without evidence maps"):
        plain.export(tmp_path / "again.xml", "openvino", maps=True)
    assert not (tmp_path / "again.xml").exists()


def test_int8_stays_close_and_says_so(model, photos, tmp_path):
    quantized = model.quantize(photos)
    assert quantized.card.arithmetic == "int8"
    exact = reference_probabilities(photos)
    found = np.stack([p.probabilities for p in quantized.predict(photos)])
    assert 0 < np.abs(found - exact).max() < 0.1
    with pytest.raises(IntclipError, match="export"):
        pickle.dumps(quantized)
    path = quantized.export(tmp_path / "int8.xml", "openvino")
    reloaded = intclip.load(path)
    assert pickle.loads(pickle.dumps(reloaded)).card == reloaded.card
    assert reloaded.card.arithmetic == "int8"
    np.testing.assert_allclose(np.stack([p.probabilities for p in reloaded.predict(photos)]), found, atol=1e-3)
    # The float model is unchanged.
    np.testing.assert_allclose(np.stack([p.probabilities for p in model.predict(photos)]), exact, atol=1e-5)


@pytest.mark.parametrize("name", ["x.bin", "x", "x.xml"])
def test_wrong_suffixes(model, tmp_path, name):
    with pytest.raises(IntclipError, match=r"\*\.onnx"):
        model.export(tmp_path / name, "onnx")
    assert list(tmp_path.iterdir()) == []


def test_unknown_format(model, tmp_path):
    with pytest.raises(IntclipError, match="onnx or openvino"):
        model.export(tmp_path / "x.onnx", "tflite")


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_what_cannot_be_written_leaves_nothing(files, format):
    graph = intclip.load(files[format])._graph
    target = "/proc/nowhere/x.onnx" if format == "onnx" else "/proc/nowhere/x.xml"
    with pytest.raises(StorageError, match=target):
        graph.export(target, maps=False)


@pytest.fixture
def no_space():
    """Limit files to 4 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_a_full_disk_is_told_and_leaves_nothing(files, tmp_path, no_space, name):
    graph = intclip.load(files["onnx" if name == "x.onnx" else "openvino"])._graph
    with pytest.raises(StorageError, match=name):
        graph.export(tmp_path / "new" / "folder" / name, maps=False)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_the_cache_has_no_space_for_predicts_all_the_same(bundle_path, photos, no_space):
    found = intclip.load(bundle_path, engine="openvino").predict(photos)
    expected = reference_probabilities(photos)
    np.testing.assert_allclose(np.stack([p.probabilities for p in found]), expected, atol=1e-5, rtol=0)


def test_a_folder_of_the_file_s_name_leaves_the_weights_beside_it(model, tmp_path):
    (tmp_path / "x.xml").mkdir()
    (tmp_path / "x.bin").write_bytes(b"of another model")
    with pytest.raises(StorageError, match=r"x\.xml"):
        model.export(tmp_path / "x.xml", "openvino")
    assert (tmp_path / "x.bin").read_bytes() == b"of another model"


def test_files_that_are_no_exports(files, tmp_path):
    with pytest.raises(BundleError, match=r"gone\.onnx"):
        intclip.load(tmp_path / "gone.onnx")
    for name in ("noise.onnx", "noise.xml"):
        (tmp_path / name).write_bytes(b"noise")
        (tmp_path / name).with_suffix(".bin").write_bytes(b"")
        with pytest.raises(BundleError, match=name):
            intclip.load(tmp_path / name)
    stranger = onnx.load(files["onnx"])
    del stranger.metadata_props[:]
    onnx.save(stranger, tmp_path / "stranger.onnx")
    with pytest.raises(BundleError, match=r"stranger\.onnx"):
        intclip.load(tmp_path / "stranger.onnx")
    lonely = tmp_path / "lonely.xml"
    lonely.write_bytes(files["openvino"].read_bytes())
    with pytest.raises(BundleError, match="lonely"):
        intclip.load(lonely)


@pytest.mark.parametrize(("key", "value"), [("card_version", 99), ("thresholds", [0.5]), ("labels", []), ("x", 1)])
def test_damaged_cards(files, tmp_path, key, value):
    refuse_card(files, tmp_path, **{key: value})


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"size": 0}, "preprocessing.size"),
        ({"size": -5}, "preprocessing.size"),
        ({"std": [0, 1, 1]}, "preprocessing.std.0"),
        ({"mean": [0, 1, float("nan")]}, "preprocessing.mean.2"),
    ],
)
def test_a_card_whose_pixels_cannot_be_names_the_field(files, tmp_path, change, place):
    preprocessing = TinyBackbone.preprocess.model_dump(mode="json") | change
    assert place in refuse_card(files, tmp_path, preprocessing=preprocessing)


@pytest.mark.parametrize("level", [float("nan"), 7.5, -1])
def test_a_card_whose_threshold_is_no_probability_names_it(files, tmp_path, level):
    assert "thresholds.1" in refuse_card(files, tmp_path, thresholds=[0.5, level, 0.5, 0.5, 0.5])


def refuse_card(files, tmp_path, **changes):
    model = onnx.load(files["onnx"])
    card = json.loads(model.metadata_props[0].value)
    onnx.helper.set_model_props(model, {"intclip": json.dumps(card | changes)})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(BundleError) as caught:
        intclip.load(tmp_path / "m.onnx")
    return str(caught.value)
