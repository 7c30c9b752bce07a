"""Text features that are kept on disk."""

import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
import torch

from families import FAMILIES
from intclip.backbones import load_backbone
from intclip.backbones.clip import random_clip
from intclip.data.text_store import FILE, TextStore, use_store


def rows(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def test_what_was_written_is_found_and_nothing_else(tmp_path):
    store, features = TextStore(tmp_path / "new" / FILE, "tower"), rows(1200)
    texts = [f"text {n}" for n in range(1200)]
    assert store.read(texts) == {}
    store.write(texts, features)
    found = store.read(["other", *reversed(texts)])
    assert set(found) == set(range(1, 1201))
    np.testing.assert_array_equal(np.stack([found[place] for place in range(1, 1201)]), features[::-1])
    assert TextStore(tmp_path / "new" / FILE, "another tower").read(texts) == {}


def test_the_texts_wanted_least_recently_go(tmp_path):
    store = TextStore(tmp_path / FILE, "tower", kept=3)
    for text in "abc":
        store.write([text], rows(1))
    store.read(["a"])
    store.write(["d"], rows(1))
    assert set(store.read(list("abcd"))) == {0, 2, 3}


def test_a_damaged_file_is_made_anew(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    store = TextStore(tmp_path / FILE, "tower")
    assert store.read(["a"]) == {}
    store.write(["a"], rows(1))
    assert set(store.read(["a"])) == {0}


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path):
    (tmp_path / "file").touch()
    store = TextStore(tmp_path / "file" / FILE, "tower")
    store.write(["a"], rows(1))
    assert store.read(["a"]) == {}


def test_a_tower_encodes_each_text_once(tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path))
    texts = ["sea", "a longer text about the sea", "sea", "mountains"]
    expected = load_backbone("lite").embed_texts(texts)
    backbones = load_backbone("lite"), load_backbone("lite")
    for backbone in backbones:
        use_store(backbone)
    first, again = (backbone.text for backbone in backbones)
    assert torch.equal(first.embed_texts(texts), expected)
    monkeypatch.setattr(type(again), "forward", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(again.embed_texts(texts), expected)
    assert list((tmp_path / "features").iterdir()) == [tmp_path / "features" / FILE]


def test_without_a_cache_folder_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", "off")
    backbone = load_backbone("lite")
    use_store(backbone)
    assert backbone.text.store is None


def test_towers_of_equal_weights_and_another_activation_share_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path))
    quick = FAMILIES["CLIP ViT"]()
    plain = random_clip(replace(quick.architecture, activation="gelu", text_activation="gelu"))
    plain.load_state_dict(quick.state_dict())
    expected = plain.embed_texts(["the sea"])
    for backbone in (quick, plain):
        use_store(backbone)
    assert not torch.equal(quick.embed_texts(["the sea"]), expected)
    assert torch.equal(plain.embed_texts(["the sea"]), expected)


def test_a_locked_database_is_waited_for_once(tmp_path):
    store = TextStore(tmp_path / FILE, "tower")
    store.write(["a"], rows(1))
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("BEGIN EXCLUSIVE")
        start = time.perf_counter()
        for _ in range(5):
            assert store.read(["a"]) == {}
            store.write(["b"], rows(1))
        assert time.perf_counter() - start < 4
