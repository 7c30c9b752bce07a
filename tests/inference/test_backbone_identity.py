"""A bundle finds its backbone's weights by content, or raises; caches detect relevant changes."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fakes import tiny_taxonomy
from hub_server import Hub
from intclip.backbones import load_backbone
from intclip.backbones.architecture import ARCHITECTURES, Architecture
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.data.feature_cache import weights_hash
from intclip.errors import BundleError
from intclip.inference.bundle import load_bundle, save_bundle
from intclip.inference.graph_cache import weights_identity
from intclip.methods.registry import build_method

SIZES = Architecture(8, 32, 2, 64, 16, 32, 1, text_heads=2)
CONFIG = {"model_cfg": {"vision_cfg": {"head_width": 64}, "text_cfg": {"heads": 2}, "quick_gelu": True}}


def write(folder, seed, *, config=CONFIG):
    folder.mkdir(parents=True, exist_ok=True)
    state = openai_state_dict(random_clip(SIZES, seed=seed))
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", SIZES)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("INTCLIP_WEIGHTS", "HF_HUB_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)


def trained(folder, checkpoint, *, name="ViT-B/32", **options):
    backbone = load_backbone(name, checkpoint=checkpoint, **options)
    method = build_method("zero_shot", backbone, tiny_taxonomy(), {"sentence_form": "fine"}).eval()
    save_bundle(folder, method, thresholds=0.5)
    return load_bundle(folder), backbone.identity()


@pytest.mark.parametrize("regions", ["values", "clear"])
def test_a_bundle_keeps_what_the_patches_give(tmp_path, regions):
    one = write(tmp_path / "one", 1)
    bundle, identity = trained(tmp_path / "bundle", one, regions=regions)
    assert bundle.info.backbone.regions == regions
    assert bundle.build_method(one).backbone.identity() == identity


def test_a_folder_is_remembered_and_compared_by_content(tmp_path, monkeypatch):
    one, two = write(tmp_path / "one", 1), write(tmp_path / "two", 2)
    bundle, identity = trained(tmp_path / "bundle", one)
    assert bundle.build_method(one).backbone.identity() == identity
    moved = shutil.copytree(one, tmp_path / "moved")
    assert bundle.build_method(moved).backbone.identity() == identity
    with pytest.raises(BundleError, match=r"checkpoint \(one\)"):
        bundle.build_method()
    with pytest.raises(BundleError, match=r"two .*\(one\)"):
        bundle.build_method(two)
    shelf = tmp_path / "shelf"
    shutil.copytree(two, shelf / "ViT-B-32")
    monkeypatch.setenv("INTCLIP_WEIGHTS", str(shelf))
    with pytest.raises(BundleError, match=r"other ViT-B/32 weights .*\(one\)"):
        bundle.build_method()
    shutil.rmtree(shelf / "ViT-B-32")
    shutil.copytree(one, shelf / "ViT-B-32")
    assert bundle.build_method().backbone.identity() == identity


def test_the_folder_of_weights_is_compared_too(tmp_path, monkeypatch):
    shelf = tmp_path / "shelf"
    write(shelf / "ViT-B-32", 1)
    monkeypatch.setenv("INTCLIP_WEIGHTS", str(shelf))
    bundle, identity = trained(tmp_path / "bundle", None)
    assert bundle.build_method().backbone.identity() == identity
    write(shelf / "ViT-B-32", 2)
    with pytest.raises(BundleError, match="other ViT-B/32 weights"):
        bundle.build_method()


def test_the_same_weights_in_another_kind_of_file_are_the_same(tmp_path):
    one = write(tmp_path / "one", 1)
    bundle, identity = trained(tmp_path / "bundle", one)
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(load_file(one / "open_clip_model.safetensors"), pickled / "open_clip_pytorch_model.bin")
    shutil.copy(one / "open_clip_config.json", pickled)
    assert bundle.build_method(pickled).backbone.identity() == identity


@pytest.mark.parametrize("change", [{"quick_gelu": False}, {"vision_cfg": {"head_width": 32}}])
def test_a_configuration_that_comes_later_is_another_backbone(tmp_path, change):
    one = write(tmp_path / "one", 1, config=None)
    bundle, _ = trained(tmp_path / "bundle", one, activation="quick_gelu")
    before, key = weights_hash(load_backbone("ViT-B/32", checkpoint=one)), weights_identity("ViT-B/32", one)
    bundle.build_method(one)
    (one / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG["model_cfg"] | change}))
    assert weights_hash(load_backbone("ViT-B/32", checkpoint=one)) != before
    assert weights_identity("ViT-B/32", one) != key
    if "vision_cfg" in change:  # the activation was given by hand, and the bundle remembers it
        with pytest.raises(BundleError, match="number of heads"):
            bundle.build_method(one)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json", "preprocessor_config.json"])
def test_the_graph_cache_sees_every_file(tmp_path, name):
    one = write(tmp_path / "one", 1)
    file = one / name
    key = weights_identity("ViT-B/32", one)
    assert weights_identity("ViT-B/32", str(one)) == key
    before = file.read_bytes() if file.is_file() else b"{ }"
    file.write_bytes(before)
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    key = weights_identity("ViT-B/32", one)
    file.write_bytes(before[:-2] + b"\n" + before[-1:])
    os.utime(file, ns=times)  # same size, same modification time
    assert weights_identity("ViT-B/32", one) != key


def test_a_copied_file_system_has_the_same_identity(tmp_path, monkeypatch):
    def identity(place):
        (place / "cache").mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("INTCLIP_CACHE", str(place / "cache"))
        monkeypatch.setenv("INTCLIP_WEIGHTS", str(place / "weights"))
        return weights_identity("ViT-B/32", None)

    write(tmp_path / "image" / "weights" / "ViT-B-32", 1)
    key = identity(tmp_path / "image")
    copied = shutil.copytree(tmp_path / "image", tmp_path / "container", copy_function=shutil.copy)  # new times
    assert identity(copied) == key
    monkeypatch.setattr("intclip.inference.graph_cache.sha256_file", None)  # the second time the cache has it
    assert identity(copied) == key


def test_preprocessing_that_comes_later_changes_the_feature_caches_key(tmp_path):
    one = write(tmp_path / "one", 1)
    before = weights_hash(load_backbone("ViT-B/32", checkpoint=one))
    config = CONFIG | {"preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}}
    (one / "open_clip_config.json").write_text(json.dumps(config))
    assert weights_hash(load_backbone("ViT-B/32", checkpoint=one)) != before


@pytest.mark.parametrize("name", ["ViT-B/32", "CLIP", "hf:me/small"])
def test_a_hub_repository_is_fetched_again(tmp_path, monkeypatch, name):
    one = write(tmp_path / "one", 1)
    files = {f"me/small/{file.name}": file.read_bytes() for file in one.iterdir()}
    with Hub(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.address)
        checkpoint = None if name.startswith("hf:") else "hf:me/small"
        bundle, identity = trained(tmp_path / "bundle", checkpoint, name=name)
        assert bundle.build_method().backbone.identity() == identity
        assert bundle.build_method(one).backbone.identity() == identity
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
        assert bundle.build_method().backbone.identity() == identity
        other = write(tmp_path / "other", 2)
        hub.files |= {f"me/small/{file.name}": file.read_bytes() for file in other.iterdir()}
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "third"))
        with pytest.raises(BundleError, match=r"trained on other .*"):
            bundle.build_method()
