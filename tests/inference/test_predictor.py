"""`intclip.load(…).predict(…)`: equal results for every kind of input, bad photos by name, bounded memory."""

import gc
import itertools
import multiprocessing
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image

import intclip
from fakes import tiny_taxonomy
from intclip.errors import BundleError, CheckpointError, ImageError, IntclipError, TaxonomyError
from intclip.inference import graph_cache
from intclip.inference.loading import ZERO_SHOT_THRESHOLD
from tiny_models import THRESHOLDS, reference_probabilities, tiny_known, write_bundle

ENGINES = ["torch", "openvino"]


@pytest.fixture(scope="module", params=ENGINES)
def model(request, bundle_path):
    with tiny_known():
        yield intclip.load(bundle_path, engine=request.param, device="cpu")


@pytest.fixture
def bad(tmp_path):
    """An empty file, a text file, half a photo, and a missing photo."""
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    Image.effect_noise((80, 60), 50).convert("RGB").save(tmp_path / "whole.jpg")
    half = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(half[: len(half) // 2])
    return [tmp_path / name for name in ("empty.jpg", "text.png", "half.jpg", "gone.jpg")]


def test_probabilities_are_those_of_plain_torch(model, photos):
    found = model.predict(photos)
    expected = reference_probabilities(photos)
    assert [prediction.source for prediction in found] == [str(path) for path in photos]
    for prediction, row in zip(found, expected, strict=True):
        assert prediction.probabilities.dtype == np.float32
        assert prediction.probabilities.shape == (5,)
        np.testing.assert_allclose(prediction.probabilities, row, atol=1e-5, rtol=0)


def test_labels_follow_the_bundle_s_thresholds(model, photos):
    np.testing.assert_array_equal(model.thresholds, np.float32(THRESHOLDS))
    names = tiny_taxonomy().names
    assert model.taxonomy.names == names
    for prediction in model.predict(photos):
        values = prediction.probabilities
        expected = [n for n, p, t in zip(names, values, np.float32(THRESHOLDS), strict=True) if p >= t]
        assert prediction.labels == expected
        assert prediction.scores == dict(zip(names, values.tolist(), strict=True))
        assert prediction.top(2)[0][1] == values.max()
        with pytest.raises(ValueError, match="count=-1"):
            prediction.top(-1)


def test_a_label_at_its_threshold_holds(model, photos):
    prediction = model.predict(photos[0])[0]
    at = model.predict(photos[0], thresholds=prediction.probabilities)[0]
    above = model.predict(photos[0], thresholds=np.nextafter(prediction.probabilities, np.float32(1)))[0]
    assert at.labels == list(model.taxonomy.names)
    assert above.labels == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_a_photo_alone_and_in_a_batch_agree(model, photos, batch_size):
    alone = [model.predict(path)[0].probabilities for path in photos]
    together = [prediction.probabilities for prediction in model.predict(photos, batch_size=batch_size)]
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)


def test_paths_pil_arrays_and_bytes_give_the_same(model, photos):
    path = photos[1]
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    given = [path, str(path), rgb, np.asarray(rgb), path.read_bytes()]
    # One at a time: two rows of a batch may use different kernels and differ in the last bits.
    found = [model.predict([photo])[0] for photo in given]
    for prediction in found[1:]:
        np.testing.assert_array_equal(prediction.probabilities, found[0].probabilities)
    sources = [prediction.source for prediction in model.predict(given)]
    assert sources[2:] == ["image 3", "image 4", "image 5"]


def test_folders_and_patterns_stand_for_their_photos(model, photos):
    folder = photos[0].parent
    assert [p.source for p in model.predict(folder)] == sorted(str(path) for path in photos)
    assert [p.source for p in model.predict(str(folder / "*.png"))] == [str(photos[1]), str(photos[2])]
    assert len(model.predict([photos[0], folder])) == 6
    assert model.predict([]) == []


def test_bad_photos_are_named(model, photos, bad):
    for path in bad:
        with pytest.raises(ImageError, match=path.name):
            model.predict([photos[0], path])
    with pytest.raises(ImageError, match=r"image 2.*float32"):
        model.predict([photos[0], np.zeros((4, 4, 3), np.float32)])
    for nothing in (float("nan"), 0, [photos[0]]):  # a gap in a column of a table; a number is no open file
        with pytest.raises(ImageError, match=rf"^image 2: {type(nothing).__name__} "):
            model.predict([photos[0], nothing])


def test_bad_photos_can_be_collected_in_place(model, photos, bad):
    mixed = list(itertools.chain(*zip(photos, [*bad, photos[4]], strict=True)))
    found = model.predict(mixed, errors="collect", batch_size=3)
    assert [p.source for p in found] == [str(path) for path in mixed]
    for prediction, path in zip(found, mixed, strict=True):
        if path in bad:
            assert path.name in prediction.error
            assert prediction.labels == []
            assert prediction.top() == []
            assert np.isnan(prediction.probabilities).all()
        else:
            assert prediction.error is None
    good = [prediction.probabilities for prediction in found if prediction.error is None]
    np.testing.assert_allclose(good, reference_probabilities([p for p in mixed if p not in bad]), atol=1e-5, rtol=0)


def test_only_bad_photos(model, bad):
    assert all(prediction.error for prediction in model.predict(bad, errors="collect"))


def test_a_stream_is_read_as_it_goes(model, photos):
    """From an endless source, only some batches are read ahead."""
    taken = itertools.count()

    def endless():
        for i in itertools.count():
            next(taken)
            yield photos[i % 5]

    stream = model.predict_iter(endless(), batch_size=4, workers=2)
    first = [prediction.source for prediction in itertools.islice(stream, 10)]
    assert first == [str(photos[i % 5]) for i in range(10)]
    assert next(taken) <= 10 + 4 * 4
    stream.close()


def test_damaged_photos_hold_no_memory(model, photos, bad):
    """Each batch of 32 has 0.2 MB of pixels and a damaged photo, whose error must not keep them: 60 batches, 13 MB."""
    sources = itertools.chain.from_iterable([bad[i % 3], *photos * 6, photos[0]] for i in range(60))
    model.predict([*photos, bad[0]], errors="collect")  # whatever is created at first use
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        errors = sum(p.error is not None for p in model.predict_iter(sources, errors="collect", workers=2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert errors == 60
    assert peak < 5e6


def test_levels_are_lifted(model, photos):
    prediction = model.predict(photos[0])[0]
    groups = prediction.level("group")
    values = prediction.probabilities
    assert groups == pytest.approx({"group 0": max(values[[0, 2, 4]]), "group 1": max(values[[1, 3]])})
    assert prediction.level(0) == prediction.level("class") == pytest.approx(prediction.scores)
    with pytest.raises(TaxonomyError, match="group"):
        prediction.level("family")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(0.2, [0.2] * 5), ([0, 0.1, 0.2, 0.3, 1], [0, 0.1, 0.2, 0.3, 1]), ({"class 1": 0.9}, [0.3, 0.9, 0.52, 0.6, 0.45])],
)
def test_thresholds_in_place_of_the_model_s(model, photos, given, expected):
    prediction = model.predict(photos[0], thresholds=given)[0]
    np.testing.assert_array_equal(prediction.thresholds, np.float32(expected))


@pytest.mark.parametrize("given", [1.1, -0.1, [0.5, 0.5], {"class 1": 2}, float("nan")])
def test_impossible_thresholds(model, photos, given):
    with pytest.raises(IntclipError, match="threshold"):
        model.predict(photos[0], thresholds=given)


def test_evidence_comes_from_the_model_s_region_logits(model, photos):
    evidence = model.explain(photos[0], "class 2")
    assert evidence.branches == ("fused", "sight", "semantic")
    assert evidence.probability == pytest.approx(model.predict(photos[0])[0].scores["class 2"], abs=1e-6)
    for name in evidence.branches:
        heat = getattr(evidence, name)
        assert heat.shape == (24, 24)
        assert heat.dtype == np.float32
        assert (heat.min(), heat.max()) == (0, 1)
        assert evidence.regions[name].shape == (3, 3)
        # The maximum of the map is in the region with the highest logit.
        row, column = np.unravel_index(evidence.regions[name].argmax(), (3, 3))
        assert (heat[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]).max() == 1
    assert not np.array_equal(evidence.sight, evidence.semantic)


def test_evidence_lies_on_what_the_model_saw(model, photos):
    """A photo of 31 × 90: the middle square of 31."""
    left, top, right, bottom = model.explain(photos[2], "class 2").box
    assert (left, right) == (0, 31)
    assert right - left == pytest.approx(bottom - top, abs=0.5)
    assert (top + bottom) / 2 == pytest.approx(45, abs=1)


def test_evidence_of_an_unknown_label(model, photos):
    with pytest.raises(TaxonomyError, match="did you mean 'class 2'"):
        model.explain(photos[0], "clas 2")


def test_zero_shot_takes_any_labels_and_shows_sight_in_place_of_all(photos, own_cache):
    model = intclip.load("zero-shot:tiny", taxonomy=tiny_taxonomy(3), engine="openvino")
    twin = intclip.load("zero-shot:tiny", taxonomy=tiny_taxonomy(3), engine="torch", device="cpu")
    assert model.thresholds.tolist() == [ZERO_SHOT_THRESHOLD] * 3
    for a, b in zip(model.predict(photos), twin.predict(photos), strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5, rtol=0)
    evidence = model.explain(photos[0], "class 1")
    assert evidence.branches == ("sight",)
    np.testing.assert_array_equal(evidence.sight, evidence.fused)
    np.testing.assert_array_equal(evidence.sight, evidence.semantic)


def test_exclusive_labels_give_one(tmp_path, photos):
    import dataclasses

    from fakes import TinyBackbone
    from intclip.methods.registry import build_method

    taxonomy = dataclasses.replace(tiny_taxonomy(), exclusive=True)
    method = build_method("intclip", TinyBackbone(), taxonomy, {"context_length": 3})
    path = write_bundle(tmp_path / "b", method, thresholds=0.0)
    for prediction in intclip.load(path, engine="torch", device="cpu").predict(photos):
        assert prediction.probabilities.sum() == pytest.approx(1, abs=1e-5)
        assert prediction.labels == [taxonomy.names[prediction.probabilities.argmax()]]


def test_a_pickled_model_loads_itself_again(model, photos, own_cache):
    again = pickle.loads(pickle.dumps(model))
    assert (again.card, again.engine_name) == (model.card, model.engine_name)
    for a, b in zip(again.predict(photos), model.predict(photos), strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)
    labels = intclip.load("zero-shot:tiny", taxonomy=tiny_taxonomy(3), engine="torch")
    assert pickle.loads(pickle.dumps(labels)).taxonomy == labels.taxonomy


def test_other_processes_can_predict_with_one_model(photos):
    model = intclip.load("lite")
    expected = np.stack([found.probabilities for found in model.predict(photos[:2])])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.map(model.predict, [[photo] for photo in photos[:2]])
    np.testing.assert_allclose(np.stack([one[0].probabilities for one in found]), expected, atol=1e-5)


def test_the_second_load_builds_nothing(bundle_path, photos, monkeypatch):
    first = intclip.load(bundle_path, engine="openvino").predict(photos)
    monkeypatch.setattr("intclip.inference.bundle.Bundle.build_method", None)
    second = intclip.load(bundle_path, engine="openvino").predict(photos)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a.probabilities, b.probabilities)


def test_another_bundle_is_another_graph(bundle_path, tmp_path, photos):
    intclip.load(bundle_path, engine="openvino")
    moved = write_bundle(tmp_path / "b", thresholds=0.1)
    assert intclip.load(moved, engine="openvino").thresholds.tolist() == pytest.approx([0.1] * 5)


def test_a_damaged_cache_is_made_anew(bundle_path, photos):
    expected = intclip.load(bundle_path, engine="openvino").predict(photos[0])[0].probabilities
    for file in (graph_cache.cache_home() / "graphs").rglob("model.xml"):
        file.write_text("<net")
    found = intclip.load(bundle_path, engine="openvino").predict(photos[0])[0].probabilities
    np.testing.assert_array_equal(found, expected)


def test_the_cache_keeps_the_latest(bundle_path, monkeypatch):
    graph = intclip.load(bundle_path, engine="openvino")._graph
    monkeypatch.setattr(graph_cache, "KEPT", 2)
    for key in ("a", "b", "c"):
        graph_cache.keep_graph(key, graph)
    assert graph_cache.cached_graph("a", "openvino") is None
    assert graph_cache.cached_graph("c", "openvino") is not None
    assert len(list((graph_cache.cache_home() / "graphs").iterdir())) == 2


@pytest.mark.parametrize("cache", ["off", "/proc/nowhere"])
def test_without_a_writable_cache_it_works_all_the_same(bundle_path, photos, monkeypatch, cache):
    monkeypatch.setenv("INTCLIP_CACHE", cache)
    assert len(intclip.load(bundle_path, engine="openvino").predict(photos)) == 5


def test_specs_that_lead_nowhere(bundle_path, tmp_path):
    with pytest.raises(IntclipError, match="did you mean 'lite'"):
        intclip.load("lit")
    with pytest.raises(IntclipError, match="'x/y/z'"):
        intclip.load("x/y/z")
    with pytest.raises(BundleError, match=str(tmp_path)):
        intclip.load(tmp_path)
    with pytest.raises(IntclipError, match=str(bundle_path)):
        intclip.load(bundle_path, taxonomy="intentonomy")
    with pytest.raises(IntclipError, match=f"{bundle_path}.*sentences"):
        intclip.load(bundle_path, sentences="fine")
    with pytest.raises(IntclipError, match="RN1O1"):
        intclip.load("zero-shot:RN1O1", taxonomy=tiny_taxonomy())
    with pytest.raises(IntclipError, match="'tpu'"):
        intclip.load(bundle_path, engine="tpu")
    with pytest.raises(IntclipError, match=r"'f8'.*f32, bf16, f16"):
        intclip.load(bundle_path, precision="f8")
    with pytest.raises(IntclipError, match="threads=0"):
        intclip.load(bundle_path, threads=0)
    with pytest.raises(IntclipError, match="lite, proxy, zero-shot:NAME"):
        intclip.load("")


def test_a_bundle_whose_backbone_is_unknown_here(bundle_path, tmp_path, monkeypatch):
    from intclip.backbones import registry

    monkeypatch.delitem(registry.BUILDERS, "tiny")
    copy = shutil.copytree(bundle_path, tmp_path / "copy")
    with pytest.raises(IntclipError, match="'tiny'"):
        intclip.load(copy, engine="torch", device="cpu")


def test_importing_and_naming_costs_nothing():
    """`import intclip` brings in no torch, no numpy and no engine; prediction from a cached graph no torch."""
    import subprocess
    import sys

    heavy = "import sys, intclip; print(sorted({'torch', 'numpy', 'openvino', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout == "[]\n"
    lazy = (
        "import sys, intclip.inference.loading, intclip.inference.pipeline, intclip.evidence.evidence, intclip.cli;"
        "print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", lazy], capture_output=True, text=True, check=True).stdout == "False\n"
    assert {"load", "Predictor", "Prediction", "__version__"} <= set(dir(intclip))
    with pytest.raises(AttributeError, match="nothing"):
        intclip.nothing  # noqa: B018


@pytest.fixture
def hub_repository(bundle_path, tmp_path, monkeypatch):
    """A hub whose cache consists of links, like the real one; records what was fetched."""
    from intclip.backbones import hub

    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123456789abcdef"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    fetched = []

    def fetch(file, *, endpoint=None):
        fetched.append((file.repo, file.filename, file.revision))
        if file.repo != "me/tiny":
            raise CheckpointError(f"cannot download {file.filename} (no such repository); pass its path as checkpoint")
        link = snapshot / file.filename
        if not link.exists():
            shutil.copy(bundle_path / file.filename, blobs / file.filename)
            link.symlink_to(blobs / file.filename)
        return link

    monkeypatch.setattr(hub, "fetch", fetch)
    return fetched


def test_a_bundle_on_the_hub(hub_repository, photos):
    model = intclip.load("hf://me/tiny@v1", engine="torch", device="cpu")
    assert hub_repository == [("me/tiny", "bundle.json", "v1"), ("me/tiny", "weights.safetensors", "v1")]
    found = np.stack([p.probabilities for p in model.predict(photos)])
    np.testing.assert_allclose(found, reference_probabilities(photos), atol=1e-5, rtol=0)
    assert len(intclip.load("hf://me/tiny@v1", engine="torch", device="cpu").predict(photos)) == 5


@pytest.mark.parametrize("spec", ["hf://me/gone", "hf://", "hf://../x", "hf://a"])
def test_a_hub_repository_that_is_none(hub_repository, spec):
    with pytest.raises(IntclipError, match=r"hub|bundle") as caught:
        intclip.load(spec)
    assert "\n" not in str(caught.value)
