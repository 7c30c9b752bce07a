"""A bundle is read as written, and anything else is rejected with a one-line error."""

import json
import re
import shutil
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from fakes import tiny_taxonomy
from intclip.errors import BundleError, IntclipError, StorageError
from intclip.evaluation.report import write_predictions
from intclip.evaluation.scoring import Scores
from intclip.files import sha256_file
from intclip.inference import load, load_bundle
from intclip.inference.bundle import set_temperature, set_thresholds
from tiny_models import OPTIONS, THRESHOLDS, tiny_intclip, write_bundle

REMEDY = re.compile(r"[;:] (fetch or copy it again|copy the file .*|give .*|check the path|upgrade with: .*)$")
"""How every error ends: what to do."""


@pytest.fixture
def copy(bundle_path, tmp_path):
    """A bundle to damage."""
    return shutil.copytree(bundle_path, tmp_path / "copy")


def edit_json(bundle, **changes):
    content = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(content | changes))


def edit_weights(bundle, change, *, manifest=True):
    """Change the tensors; with `manifest`, update the hash in bundle.json, so that only the tensors are wrong."""
    file = bundle / "weights.safetensors"
    state = {name: array.copy() for name, array in load_file(file).items()}
    change(state)
    save_file(state, file)
    if manifest:
        weights = json.loads((bundle / "bundle.json").read_text())["weights"]
        edit_json(bundle, weights=weights | {"sha256": sha256_file(file)})


def refused(bundle, *parts):
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    message = str(caught.value)
    assert "\n" not in message
    assert REMEDY.search(message), message
    for part in parts:
        assert part in message
    return message


def test_round_trip_restores_every_number(bundle_path):
    bundle = load_bundle(bundle_path)
    assert bundle.info.backbone.name == "tiny"
    assert bundle.info.method.name == "intclip"
    assert bundle.info.recipe == {"epochs": 3}
    assert bundle.info.metrics == {"val": {"mAP": 0.5, "macro_f1": None}}
    assert bundle.info.sentences == tiny_taxonomy().sentences("6-9")
    assert bundle.taxonomy == tiny_taxonomy()
    np.testing.assert_array_equal(bundle.thresholds, np.float32(THRESHOLDS))
    own, loaded = tiny_intclip().own_state(), bundle.build_method().own_state()
    assert own.keys() == loaded.keys() == bundle.state.keys()
    for name, tensor in own.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("levels", [[0.5] * 4, [0.5] * 4 + [1.5], [0.5] * 4 + [float("nan")]])
def test_wrong_thresholds_are_refused_and_nothing_is_written(bundle_path, tmp_path, levels):
    own = shutil.copytree(bundle_path, tmp_path / "own")
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    with pytest.raises(BundleError, match=re.escape(str(own))) as refusal:
        set_thresholds(own, np.array(levels))
    assert "\n" not in str(refusal.value)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def test_the_backbone_is_not_stored(bundle_path):
    assert not any(name.startswith("backbone") for name in load_file(bundle_path / "weights.safetensors"))


def test_only_two_files_and_no_pickle(bundle_path):
    assert sorted(path.name for path in bundle_path.iterdir()) == ["bundle.json", "weights.safetensors"]


def test_others_may_read_it_as_any_new_file(bundle_path, tmp_path):
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in (*bundle_path.iterdir(), tmp_path / "new")}
    assert len(modes) == 1


def test_equal_models_give_equal_bytes(bundle_path, tmp_path):
    again = write_bundle(tmp_path / "again")
    for name in ("bundle.json", "weights.safetensors"):
        assert (again / name).read_bytes() == (bundle_path / name).read_bytes()


def test_float16_rounds_and_halves(bundle_path, tmp_path):
    half = write_bundle(tmp_path / "half", dtype="float16")
    on_disk = load_file(half / "weights.safetensors")
    assert {array.dtype.name for array in on_disk.values()} == {"float16", "int64"}
    exact, rounded = load_bundle(bundle_path).state, load_bundle(half).state
    for name, array in exact.items():
        assert rounded[name].dtype == array.dtype
        expected = array.astype(np.float16).astype(np.float32) if array.dtype == np.float32 else array
        np.testing.assert_array_equal(rounded[name], expected)


def test_one_threshold_serves_all_labels(tmp_path):
    bundle = load_bundle(write_bundle(tmp_path / "b", thresholds=0.4))
    np.testing.assert_array_equal(bundle.thresholds, np.full(5, 0.4, np.float32))


@pytest.mark.parametrize("thresholds", [1.5, [0.5] * 4, float("nan")])
def test_wrong_thresholds_are_not_saved(tmp_path, thresholds):
    with pytest.raises(BundleError, match="thresholds"):
        write_bundle(tmp_path / "b", thresholds=thresholds)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "float32"), (float("inf"), "float32"), (1e6, "float16")])
def test_weights_that_cannot_be_kept_are_not_saved(tmp_path, value, dtype):
    method = tiny_intclip()
    with torch.no_grad():
        method.learnable_parameters()[0].view(-1)[0] = value
    with pytest.raises(BundleError, match="tensor prompts"):
        write_bundle(tmp_path / "b", method, dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_is_kept_unless_told(bundle_path, tmp_path):
    target = shutil.copytree(bundle_path, tmp_path / "b")
    with pytest.raises(StorageError, match="exists"):
        write_bundle(target)
    write_bundle(target, thresholds=0.25, overwrite=True)
    assert load_bundle(target).info.thresholds == 0.25


def test_missing_tensor(copy):
    name = next(iter(load_bundle(copy).state))
    edit_weights(copy, lambda state: state.pop(name))
    refused(copy, "lacks", name)


def test_extra_tensor(copy):
    edit_weights(copy, lambda state: state.update(stowaway=np.zeros(3, np.float32)))
    refused(copy, "stowaway", "unexpected tensors stowaway")


def test_wrong_shape(copy):
    edit_weights(copy, lambda state: state.update({"prompts.context": np.zeros((2, 2), np.float32)}))
    refused(copy, "prompts.context", "[2, 2]")


def test_wrong_dtype(copy):
    edit_weights(copy, lambda state: state.update({"prompts.context": state["prompts.context"].astype(np.float64)}))
    refused(copy, "prompts.context", "F64")


def test_nan_weights(copy):
    edit_weights(copy, lambda state: state["prompts.context"].fill(np.nan))
    refused(copy, "prompts.context", "NaN")


def test_exchanged_weights(copy):
    edit_weights(copy, lambda state: state["prompts.context"].fill(0), manifest=False)
    refused(copy, "SHA-256")


def test_a_tensor_missing_from_manifest_and_file_is_found_by_the_method(copy):
    weights = json.loads((copy / "bundle.json").read_text())["weights"]
    del weights["tensors"]["aggregation.attention.alpha"]
    edit_json(copy, weights=weights)
    edit_weights(copy, lambda state: state.pop("aggregation.attention.alpha"))
    with pytest.raises(BundleError, match=r"aggregation\.attention\.alpha"):
        load_bundle(copy).build_method()


def test_truncated_weights(copy):
    file = copy / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    refused(copy, "damaged")
    file.write_bytes(b"1234")
    refused(copy, "truncated")


def test_huge_header_is_not_read(copy):
    file = copy / "weights.safetensors"
    file.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(copy, "truncated")
    file.write_bytes(struct.pack("<Q", 8 * 2**20) + b" " * (8 * 2**20))
    refused(copy, "header")


@pytest.mark.parametrize(
    "header", [b"[]", b"{{", b'{"a": 1}', b'{"a": {"dtype": "BF16", "shape": [], "data_offsets": [0, 2]}}', b"[" * 5000]
)
def test_headers_that_are_none(copy, header):
    (copy / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(copy, "not a safetensors file")


def test_newer_version(copy):
    edit_json(copy, format_version=99)
    refused(copy, "newer intclip", "upgrade")


@pytest.mark.parametrize("version", [0, -1, "1", None, True])
def test_impossible_version(copy, version):
    edit_json(copy, format_version=version)
    refused(copy, "format_version")


@pytest.mark.parametrize("name", ["../tiny", "/etc/passwd", "a/../b", "..", "", "tiny\n", "hf:../x", "C:\\x"])
def test_a_backbone_is_a_name_and_never_a_path(copy, name):
    backbone = json.loads((copy / "bundle.json").read_text())["backbone"]
    edit_json(copy, backbone=backbone | {"name": name})
    refused(copy, "backbone.name")


@pytest.mark.parametrize("name", ["../intclip", "intclip.methods", "os;", ""])
def test_a_method_is_a_name_and_never_a_path(copy, name):
    edit_json(copy, method={"name": name, "options": {}})
    refused(copy, "method.name")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"thresholds": [0.5]}, "1 thresholds for 5 labels"),
        ({"thresholds": 1.5}, "thresholds"),
        ({"sentences": []}, "0 sentences for 5 labels"),
        ({"taxonomy": {}}, "taxonomy"),
        ({"temperature": 0}, "temperature"),
        ({"surprise": 1}, "surprise"),
        ({"preprocessing": {"size": 24}}, "preprocessing"),
        ({"preprocessing": {"size": 24, "mean": [0, 0, 0], "std": [0, 0, 0]}}, "preprocessing.std.0"),
        ({"format": "zip"}, "format"),
    ],
)
def test_wrong_fields(copy, change, part):
    edit_json(copy, **change)
    refused(copy, part)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "intclip-bundle", "x": NaN}', "[" * 100_000])
def test_json_that_is_none(copy, text):
    (copy / "bundle.json").write_text(text)
    refused(copy, "bundle.json")


def test_json_without_end(copy):
    (copy / "bundle.json").write_bytes(b" " * (17 * 2**20))
    refused(copy, "larger than")


@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_links_and_missing_files(copy, name, tmp_path):
    (copy / name).rename(tmp_path / "elsewhere")
    refused(copy, name)
    (copy / name).symlink_to(tmp_path / "elsewhere")
    refused(copy, name, "link")
    (copy / name).unlink()
    (copy / name).mkdir()
    refused(copy, name, "regular")


def test_no_directory(tmp_path):
    refused(tmp_path / "nowhere", "no bundle")


def test_unknown_method_and_backbone_are_named(copy):
    edit_json(copy, method={"name": "intklip", "options": OPTIONS})
    with pytest.raises(IntclipError, match=r"intklip.*intclip"):
        load_bundle(copy).build_method()


def test_own_checkpoint_is_asked_for_and_compared(tmp_path):
    weights, other = tmp_path / "mine.pt", tmp_path / "other.pt"
    weights.write_bytes(b"weights")
    other.write_bytes(b"others")
    bundle = load_bundle(write_bundle(tmp_path / "b", checkpoint=weights))
    assert bundle.info.backbone.checkpoint.name == "mine.pt"
    bundle.build_method(weights)
    with pytest.raises(BundleError, match=r"mine\.pt"):
        bundle.build_method()
    with pytest.raises(BundleError, match=r"other\.pt.*tiny"):
        bundle.build_method(other)


@pytest.mark.parametrize("engine", ["torch", "openvino", "onnx"])
def test_a_temperature_divides_the_logits_and_moves_the_thresholds(copy, photos, engine):
    plain = load(copy, engine=engine).predict(photos)
    weights = sha256_file(copy / "weights.safetensors")
    set_temperature(copy, 0.25)
    assert sha256_file(copy / "weights.safetensors") == weights
    sharp = load(copy, engine=engine).predict(photos)
    for before, after in zip(plain, sharp, strict=True):
        odds = before.probabilities / (1 - before.probabilities)
        np.testing.assert_allclose(after.probabilities, odds**4 / (1 + odds**4), rtol=1e-4, atol=1e-6)
        assert after.labels == before.labels
    levels = np.array(THRESHOLDS) / (1 - np.array(THRESHOLDS))
    np.testing.assert_allclose(load_bundle(copy).thresholds, levels**4 / (1 + levels**4), rtol=1e-5)


def test_a_temperature_is_given_once_and_leaves_thresholds_of_0_and_1(tmp_path):
    path = write_bundle(tmp_path / "bundle", thresholds=[0, 1, 0.5, 0.5, 0.5])
    set_temperature(path, 3.0)
    np.testing.assert_array_equal(load_bundle(path).thresholds, np.float32([0, 1, 0.5, 0.5, 0.5]))
    with pytest.raises(BundleError, match=r"temperature.*\b3\b"):
        set_temperature(path, 2.0)
    info = json.loads((path / "bundle.json").read_text())
    edit_json(path, task="singlelabel", temperature=1.0, taxonomy=info["taxonomy"] | {"exclusive": True})
    set_temperature(path, 2.0)  # the most probable label stays, so there is nothing to move
    assert load_bundle(path).info.temperature == 2
    np.testing.assert_array_equal(load_bundle(path).thresholds, np.float32([0, 1, 0.5, 0.5, 0.5]))


def test_calibrate_writes_the_temperature_of_the_whole_split(cli, tmp_path):
    run = tmp_path / "run"
    bundle = write_bundle(run / "bundle")
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1.5, (2000, 5))
    targets = (rng.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    timid = 1 / (1 + np.exp(-logits / 4))
    names = list(tiny_taxonomy().names)
    write_predictions(run / "predictions-val.parquet", Scores(names * 400, timid, targets, []), names)
    assert cli("calibrate", run, "--out", tmp_path)[0] == 0
    assert load_bundle(bundle).info.temperature == 1
    assert cli("calibrate", run, "--write")[0] == 0
    assert load_bundle(bundle).info.temperature == pytest.approx(0.25, rel=0.05)
    code, _, err = cli("calibrate", run, "--write")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "already has a temperature" in err
    code, _, err = cli("calibrate", run / "predictions-val.parquet", "--write")
    assert code == 2
    assert "has no bundle" in err
