import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from intclip.backbones.preprocess import Preprocess
from intclip.data import cache_shards, feature_cache
from intclip.data.cache_shards import DEFAULT_LIMIT, CacheFolder
from intclip.data.feature_cache import CacheKey, cache_key, open_or_build, weights_hash
from intclip.data.loading import pixel_batches
from intclip.data.sample import Sample, TarMember
from intclip.data.transforms import Augment, AugmentConfig
from intclip.errors import ImageError, StorageError
from intclip.files import sha256_file

PREPROCESS = Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
KEY = CacheKey("weights", PREPROCESS, ("trunk", "pooled"), "float32")
AUGMENT = Augment(AugmentConfig(), PREPROCESS, seed=3)
BYTES = (3 * 4 * 4 + 3) * 4  # a photo's features in float32


class CountingExtract:
    """Mean colours of cells and of the whole, with a count of photos."""

    def __init__(self):
        self.photos = 0

    def __call__(self, pixels):
        self.photos += len(pixels)
        cells = pixels.reshape(len(pixels), 3, 4, 8, 4, 8).mean(axis=(3, 5))
        return {"trunk": cells, "pooled": pixels.mean(axis=(2, 3))}


def make_photos(folder: Path, count: int) -> list[Sample]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(str(number), np.zeros(2, np.float32), path))
    return samples


@pytest.fixture
def samples(tmp_path):
    return make_photos(tmp_path / "photos", 11)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD_BYTES", 4 * BYTES)


def build(folder, samples, key=KEY, extract=None, *, limit=DEFAULT_LIMIT, **options):
    place = CacheFolder(folder, limit=limit, progress=False)
    return open_or_build(place, samples, key, extract or CountingExtract(), batch_size=3, **options)


def uncached(samples, view=0):
    """Slow reference: pixels by the same loader, features by the same extractor, without a cache."""
    change = partial(AUGMENT, epoch=0, view=view) if view else None
    parts = [CountingExtract()(batch.pixels.numpy()) for batch in pixel_batches(samples, PREPROCESS, 5, augment=change)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("view", [0, 1, 2])
def test_features_equal_the_uncached_ones(tmp_path, samples, view):
    cache = build(tmp_path / "cache", samples, views=(0, 1, 2), augment=AUGMENT)
    indices = np.array([7, 0, 10, 3, 3, 8])
    expected = uncached(samples, view)
    for features in (cache.batch(indices, view), cache.batch(indices.tolist(), view)):
        for name, values in expected.items():
            assert features[name].dtype == torch.float32
            np.testing.assert_array_equal(features[name].numpy(), values[indices])


def test_features_can_be_read_to_a_device(tmp_path, samples):
    cache = build(tmp_path / "cache", samples, replace(KEY, dtype="float16"))
    there, here = cache.batch([1, 2], device=torch.device("meta")), cache.batch([1, 2])
    for name, values in here.items():
        assert there[name].device.type == "meta"
        assert there[name].dtype == values.dtype == torch.float32
        assert there[name].shape == values.shape


def test_batches_pass_over_everything_in_order(tmp_path, samples):
    cache = build(tmp_path / "cache", samples)
    parts = list(cache.batches(3))
    assert [index for indices, _ in parts for index in indices] == list(range(11))
    assert [len(indices) for indices, _ in parts] == [3, 3, 3, 2]
    np.testing.assert_array_equal(
        torch.cat([part["trunk"] for _, part in parts]).numpy(), cache.batch(range(11))["trunk"].numpy()
    )
    assert cache.batch([])["trunk"].shape == (0, 3, 4, 4)


def test_a_view_or_an_index_that_is_not_there(tmp_path, samples):
    cache = build(tmp_path / "cache", samples)
    with pytest.raises(KeyError):
        cache.batch([0], view=1)
    for index in (-1, 11):
        with pytest.raises(IndexError):
            cache.batch([index])


def test_float16_stays_within_its_rounding(tmp_path, samples):
    cache = build(tmp_path / "cache", samples, replace(KEY, dtype="float16"))
    values = uncached(samples)["trunk"]
    error = np.abs(cache.batch(range(11))["trunk"].numpy() - values)
    assert 0 < (error / np.abs(values)).max() <= 2.0**-11


def test_numbers_beyond_float16_are_refused_by_name(tmp_path, samples):
    def extract(pixels):
        return {name: array + 1e5 * (name == "pooled") for name, array in CountingExtract()(pixels).items()}

    with pytest.raises(StorageError, match=r"pooled.*0 to 7 .*float16.*float32"):
        build(tmp_path / "cache", samples, replace(KEY, dtype="float16"), extract)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_second_opening_computes_nothing(tmp_path, samples):
    build(tmp_path / "cache", samples, views=(0, 1), augment=AUGMENT)
    extract = CountingExtract()
    cache = build(tmp_path / "cache", samples, extract=extract, views=(0, 1), augment=AUGMENT)
    assert extract.photos == 1  # the probe of the shapes
    assert cache.views == (0, 1)
    assert len(cache) == 11


def test_further_views_and_photos_are_added(tmp_path, samples):
    build(tmp_path / "cache", samples[:8])
    extract = CountingExtract()
    build(tmp_path / "cache", samples, extract=extract, views=(0, 1), augment=AUGMENT)
    assert extract.photos == 1 + 3 + 11


CHANGES = {
    "weights": replace(KEY, weights="others"),
    "size": replace(KEY, preprocess=PREPROCESS.model_copy(update={"size": 64})),
    "normalisation": replace(KEY, preprocess=PREPROCESS.model_copy(update={"mean": (0.0, 0.0, 0.0)})),
    "crop": replace(KEY, preprocess=PREPROCESS.model_copy(update={"crop": "squash"})),
    "names": replace(KEY, names=("trunk",)),
    "dtype": replace(KEY, dtype="float16"),
    "precision": replace(KEY, precision="bf16"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_key_changes_with_every_ingredient(change):
    assert CHANGES[change].digest() != KEY.digest()
    assert replace(KEY).digest() == KEY.digest()
    assert replace(KEY, names=("pooled", "trunk")).digest() == KEY.digest()


def towers(**changes):
    torch.manual_seed(0)
    parts = {"trunk": nn.Conv2d(3, 2, 1), "deep": nn.BatchNorm2d(2), "head": nn.Linear(2, 2)}
    design = {"activation": "gelu"}
    settings = {"name": "tower", "preprocess": PREPROCESS, "design": lambda: design}
    return SimpleNamespace(text=nn.Linear(2, 2), **settings | parts | changes)


def test_weights_hash_sees_all_that_decides_an_image_towers_numbers():
    plain = weights_hash(towers())
    assert weights_hash(towers()) == plain
    seen = {plain}
    for part in ("trunk", "deep", "head"):
        for name in getattr(towers(), part).state_dict():
            backbone = towers()
            with torch.no_grad():
                getattr(backbone, part).state_dict()[name].add_(1)
            seen.add(weights_hash(backbone))
    backbone = towers()
    backbone.trunk, backbone.deep = nn.Sequential(backbone.trunk, backbone.deep), nn.Identity()  # another split
    seen.add(weights_hash(backbone))
    seen.add(weights_hash(towers(design=lambda: {"activation": "quick_gelu"})))
    seen.add(weights_hash(towers(preprocess=PREPROCESS.model_copy(update={"interpolation": "bilinear"}))))
    assert len(seen) == 1 + 2 + 5 + 2 + 1 + 2
    backbone = towers()
    nn.init.zeros_(backbone.text.weight)  # no photo's feature depends on the text tower
    assert weights_hash(backbone) == plain


@pytest.mark.parametrize(
    "augment",
    [
        Augment(AugmentConfig(), PREPROCESS, seed=4),
        Augment(AugmentConfig(flip=0.4), PREPROCESS, seed=3),
    ],
    ids=["seed", "config"],
)
def test_another_augmentation_is_computed_anew_but_not_the_plain_view(tmp_path, samples, augment):
    build(tmp_path / "cache", samples, views=(0, 1), augment=AUGMENT)
    extract = CountingExtract()
    build(tmp_path / "cache", samples, extract=extract, views=(0, 1), augment=augment)
    assert extract.photos == 1 + 11


def test_a_changed_photo_renews_only_its_shard(tmp_path, samples):
    build(tmp_path / "cache", samples)
    Image.new("RGB", (50, 40), "red").save(samples[9].image)
    extract = CountingExtract()
    cache = build(tmp_path / "cache", samples, extract=extract)
    assert extract.photos == 1 + 3
    np.testing.assert_array_equal(cache.batch([9])["trunk"].numpy(), uncached(samples)["trunk"][[9]])


def test_same_photo_in_a_tar_has_the_same_hash(tmp_path, samples):
    archive = tmp_path / "photos.tar"
    content = samples[0].image.read_bytes()
    archive.write_bytes(b"before" + content + b"behind")
    member = TarMember(archive, "0.png", 6, len(content))
    assert cache_shards.photo_hashes([member, samples[0].image], 2) == [hashlib.sha256(content).hexdigest()] * 2


def test_photos_are_hashed_once_until_their_file_changes(samples, monkeypatch):
    hashed = Mock(side_effect=sha256_file)
    monkeypatch.setattr(cache_shards, "sha256_file", hashed)
    photos = [sample.image for sample in samples]
    before = cache_shards.photo_hashes(photos, 2)
    assert cache_shards.photo_hashes(photos, 2) == before == [sha256_file(photo) for photo in photos]
    assert hashed.call_count == 11
    stat, content = photos[4].stat(), bytearray(photos[4].read_bytes())
    content[-1] ^= 1
    photos[4].write_bytes(content)
    os.utime(photos[4], ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps size and time
    photos[5].unlink()
    assert cache_shards.photo_hashes(photos, 2) == [
        *before[:4], hashlib.sha256(content).hexdigest(), f"absent {photos[5]}", *before[6:]
    ]  # fmt: skip
    assert hashed.call_count == 12


@pytest.mark.parametrize("damage", ["flipped byte", "truncated", "missing", "no manifest", "broken manifest"])
def test_a_damaged_shard_is_found_and_rebuilt(tmp_path, samples, damage):
    cache = build(tmp_path / "cache", samples)
    shard = cache.shards[0][1]
    path = shard.path("trunk")
    content = path.read_bytes()
    if damage == "flipped byte":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    elif damage == "truncated":
        path.write_bytes(content[:-1])
    elif damage == "missing":
        path.unlink()
    elif damage == "no manifest":
        shard.manifest.unlink()
    else:
        shard.manifest.write_text(shard.manifest.read_text()[:30])
    extract = CountingExtract()
    again = build(tmp_path / "cache", samples, extract=extract)
    assert extract.photos == 1 + 4
    np.testing.assert_array_equal(again.batch(range(11))["trunk"].numpy(), uncached(samples)["trunk"])


def test_a_file_that_vanishes_while_open_gives_one_line(tmp_path, samples):
    cache = build(tmp_path / "cache", samples)
    cache.shards[0][0].path("trunk").unlink()
    with pytest.raises(StorageError, match="trunk"):
        cache.batch([0])


def test_bad_photos_are_listed_and_zero(tmp_path, samples):
    samples[2].image.write_bytes(b"not a photo")
    samples[9].image.unlink()
    samples[10] = Sample("text", np.zeros(2, np.float32), None, "only words")
    for _ in range(2):
        cache = build(tmp_path / "cache", samples)
        assert sorted(cache.errors) == [2, 9, 10]
        assert "2.png is not a supported image" in cache.errors[2]
        assert "no such photo" in cache.errors[9]
        assert not cache.batch([2, 9, 10])["trunk"].any()
        assert cache.batch([3])["trunk"].any()


def test_a_photo_that_comes_back_is_computed(tmp_path, samples):
    content = samples[9].image.read_bytes()
    samples[9].image.unlink()
    build(tmp_path / "cache", samples)
    samples[9].image.write_bytes(content)
    cache = build(tmp_path / "cache", samples)
    assert not cache.errors
    np.testing.assert_array_equal(cache.batch([9])["trunk"].numpy(), uncached(samples)["trunk"][[9]])


def test_a_photo_that_could_not_be_read_for_a_while_is_computed(tmp_path, samples, monkeypatch):
    """Its content, and so its name in the cache, is the same: an extra was missing, or the disk failed."""
    with monkeypatch.context() as patch:
        patch.setattr("intclip.data.loading.read_image", Mock(side_effect=ImageError("install heif")))
        assert len(build(tmp_path / "cache", samples).errors) == len(samples)
    cache = build(tmp_path / "cache", samples)
    assert not cache.errors
    np.testing.assert_array_equal(cache.batch([9])["trunk"].numpy(), uncached(samples)["trunk"][[9]])


def test_size_limit_is_checked_before_anything_is_computed(tmp_path, samples):
    extract = CountingExtract()
    with pytest.raises(StorageError, match=r"0\.00 GB.*11 .*0\.2 kB"):
        build(tmp_path / "cache", samples, extract=extract, limit=11 * BYTES - 1)
    assert extract.photos == 1
    assert not (tmp_path / "cache").exists()
    build(tmp_path / "cache", samples, limit=11 * BYTES)


def test_size_limit_counts_what_the_folder_holds(tmp_path, samples):
    build(tmp_path / "cache", samples)
    held = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    with pytest.raises(StorageError, match=r"already uses 0\.00 GB"):
        build(tmp_path / "cache", samples, replace(KEY, weights="others"), limit=held + 11 * BYTES - 1)
    build(tmp_path / "cache", samples, limit=0)  # nothing is missing or rejected


def test_full_disk_is_named(tmp_path, samples, monkeypatch):
    monkeypatch.setattr(cache_shards.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(StorageError, match=r"the disk has 0\.00 GB free"):
        build(tmp_path / "cache", samples)


def test_pixels_cannot_be_cached():
    with pytest.raises(StorageError, match="pixels"):
        cache_key(None, ("pixels", "regions"))


def test_views_need_an_augmentation(tmp_path, samples):
    with pytest.raises(ValueError, match="augmentation"):
        build(tmp_path / "cache", samples, views=(0, 1))


def test_extractor_must_give_what_the_key_names(tmp_path, samples):
    with pytest.raises(ValueError, match="extractor"):
        build(tmp_path / "cache", samples, replace(KEY, names=("trunk", "stages")))


BUILDER = """
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[3])
    from intclip.data import feature_cache
    from intclip.data.cache_shards import CacheFolder
    from test_feature_cache import BYTES, CountingExtract, KEY
    from intclip.data.sample import Sample
    import numpy as np

    feature_cache.SHARD_BYTES = 4 * BYTES

    class Slow(CountingExtract):
        def __call__(self, pixels):
            time.sleep(0.15 * (self.photos > 0))
            return super().__call__(pixels)

    samples = [Sample(str(i), np.zeros(2, np.float32), Path(sys.argv[1], f"{i}.png")) for i in range(11)]
    place = CacheFolder(Path(sys.argv[2]), progress=False)
    feature_cache.open_or_build(place, samples, KEY, Slow(), batch_size=1)
"""


def whole_shards(folder):
    return [path for path in folder.glob("*/*/shard.json") if not path.parent.name.startswith(".")]


def test_a_killed_build_goes_on_at_the_next_missing_shard(tmp_path, samples):
    arguments = [str(tmp_path / "photos"), str(tmp_path / "cache"), str(Path(__file__).parent)]
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(BUILDER), *arguments])
    deadline = time.monotonic() + 60
    while not whole_shards(tmp_path / "cache"):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    whole = len(whole_shards(tmp_path / "cache"))
    assert whole in (1, 2)
    extract = CountingExtract()
    cache = build(tmp_path / "cache", samples, extract=extract)
    assert extract.photos == 1 + 11 - 4 * whole
    np.testing.assert_array_equal(cache.batch(range(11))["trunk"].numpy(), uncached(samples)["trunk"])


def test_leftovers_of_killed_builds_are_removed_when_old(tmp_path, samples):
    build(tmp_path / "cache", samples[:4])
    old, young = (tmp_path / "cache" / KEY.digest() / f".{name}.partial" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir()
        (folder / "trunk.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    build(tmp_path / "cache", samples)
    assert not old.exists()
    assert young.exists()
