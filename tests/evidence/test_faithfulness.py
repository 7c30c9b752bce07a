"""Measures of evidence on cases with known answers, and on the maps of the packaged models."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data as pictures

import intclip
from fakes import TinyBackbone
from intclip.data.demo_photos import demo_photos
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.evidence.evidence import make_evidence
from intclip.evidence.faithfulness import (
    BLUR,
    center_map,
    deletion,
    insertion,
    mass_inside,
    random_map,
    rank_agreement,
    shuffle_weights,
)

SIDE = 16


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).standard_normal((3, SIDE, SIDE)).astype(np.float32) + 2


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(1).random((SIDE, SIDE)).astype(np.float32)


def linear(weights):
    """Return a model whose score is a weighted sum of pixels, so its true map is known."""
    return lambda batch: (batch.mean(axis=1) * weights).sum(axis=(1, 2)) / 1000


@pytest.mark.parametrize("measure", [deletion, insertion])
def test_a_curve_is_what_replacing_pixel_by_pixel_gives(measure, pixels, weights):
    heat = random_map(SIDE, 3)
    curve = measure(linear(weights), pixels, heat, steps=4)
    blurred = np.stack([gaussian_filter(channel, BLUR * SIDE) for channel in pixels])
    start, end = (pixels, np.zeros_like(pixels)) if measure is deletion else (blurred, pixels)
    order = sorted(((-heat[i, j], i, j) for i in range(SIDE) for j in range(SIDE)), key=lambda item: item[0])
    for step in range(5):
        changed = start.copy()
        for _, i, j in order[: step * SIDE * SIDE // 4]:
            changed[:, i, j] = end[:, i, j]
        assert curve.probability[step] == pytest.approx(linear(weights)(changed[None])[0], abs=1e-4)
    steps = (curve.probability[1:] + curve.probability[:-1]) / 2 * 0.25
    assert curve.area == pytest.approx(steps.sum())


def test_the_true_map_beats_random_and_centre(pixels, weights):
    score, truth = linear(weights), weights * pixels.mean(axis=0)
    others = [random_map(SIDE, seed) for seed in range(20)] + [center_map(SIDE)]
    assert deletion(score, pixels, truth).area < min(deletion(score, pixels, heat).area for heat in others)
    # Insertion adds what the blurred photo lacks, so its true map is the gain.
    gain = weights * (pixels - gaussian_filter(pixels, (0, BLUR * SIDE, BLUR * SIDE))).mean(axis=0)
    assert insertion(score, pixels, gain).area > max(insertion(score, pixels, heat).area for heat in others)


def test_a_map_of_another_size_is_refused(pixels):
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        deletion(lambda batch: batch[:, 0, 0, 0], pixels, np.zeros((4, 4), np.float32))


def test_baselines():
    center = center_map(SIDE)
    assert (center.min(), center.max()) == (0, 1)
    np.testing.assert_array_equal(center, center[::-1, ::-1])
    assert center[SIDE // 2, SIDE // 2] == 1
    assert not np.array_equal(random_map(SIDE, 0), random_map(SIDE, 1))
    np.testing.assert_array_equal(random_map(SIDE, 1), random_map(SIDE, 1))


def test_mass_and_agreement():
    heat = np.full((4, 4), 0.5, np.float32)
    assert mass_inside(heat, (0, 0, 2, 2)) == 0, "a map that does not vary says nothing"
    heat[0, 3] = 1
    assert mass_inside(heat, (2, 0, 4, 1)) == 1
    assert mass_inside(heat, (0, 0, 3, 4)) == 0
    other = np.random.default_rng(0).random((4, 4)).astype(np.float32)
    assert rank_agreement(other, 3 * other + 1) == pytest.approx(1)
    assert rank_agreement(other, -other) == pytest.approx(-1)
    assert rank_agreement(other, np.ones((4, 4), np.float32)) == 0


def test_shuffled_weights_are_the_same_numbers_elsewhere():
    first, second = TinyBackbone(), TinyBackbone()
    shuffle_weights(second)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(ours.flatten().sort().values, theirs.flatten().sort().values)
    batch = torch.randn(1, 3, 24, 24)
    assert not torch.allclose(first.encode_image(batch), second.encode_image(batch))


class TestEmbeddedModel:
    """lite, on scikit-image's photographs."""

    KINDS = ("regions", "fine", "gradcam")

    @pytest.fixture(scope="class")
    def model(self, tmp_path_factory):
        labels = tmp_path_factory.mktemp("labels") / "things.yaml"
        labels.write_text("[a cat, a cup of coffee, a rocket]\n")
        return intclip.load("lite", taxonomy=labels, engine="torch")

    @pytest.mark.parametrize("corner", [(0, 0), (1, 1)])
    def test_evidence_lies_on_a_planted_object(self, model, corner):
        """A cat's head, a third of the side, in a corner of a photo of a cup: the cat's evidence must be there."""
        side, patch = 600, 200
        scene = Image.fromarray(pictures.coffee()).crop((0, 0, 400, 400)).resize((side, side))
        cat = Image.fromarray(pictures.chelsea()).crop((80, 10, 340, 270)).resize((patch, patch))
        left, top = (place * (side - patch) for place in corner)
        scene.paste(cat, (left, top))
        even = (patch / side) ** 2
        for kind in self.KINDS:
            heat = model.explain(scene, "a cat", kind=kind).fused
            share = patch * heat.shape[0] // side
            x, y = (place * (heat.shape[0] - share) for place in corner)
            assert mass_inside(heat, (x, y, x + share, y + share)) > 2 * even, kind

    def test_maps_change_when_the_weights_are_shuffled(self, model):
        """A map that does not depend on the weights shows the photo, not the model."""
        photo = Image.fromarray(pictures.chelsea())
        before = {kind: model.explain(photo, "a cat", kind=kind).fused for kind in self.KINDS}
        method = model.method()
        shuffle_weights(method.backbone.deep)
        shuffle_weights(method.backbone.head)
        from intclip.evidence.kinds import maps_of_kind

        pixels = method.backbone.preprocess(photo)[None].numpy()
        for kind, heat in before.items():
            regions = maps_of_kind(method, pixels, 0, kind)
            after = make_evidence("a cat", 0, regions, size=len(heat), box=(0, 0, 1, 1), source="").fused
            assert abs(rank_agreement(heat, after)) < 0.7, kind


def test_the_packaged_model_s_own_maps_beat_random_ones():
    """The two trained branches, on real photos: the mean areas that docs/evidence.md gives of a hundred others."""
    model = intclip.load("proxy", engine="openvino")
    size = model.card.preprocessing.size
    areas: dict[str, list[tuple[float, float]]] = {"random": [], "fused": [], "semantic": [], "fine": []}
    photos = demo_photos()
    assert len(photos) >= 8
    for seed, path in enumerate(photos):
        photo = read_image(path, min_side=DRAFT_FACTOR * size)
        pixels = model.card.preprocessing(photo).numpy()
        label, probability = model.predict(path)[0].top(1)[0]
        index = model.taxonomy.index(label)
        evidence = model.explain(path, label)
        assert set(evidence.branches) == {"sight", "semantic", "fused"}
        assert evidence.probability == pytest.approx(probability, abs=1e-5)

        heats = {"random": random_map(size, seed), "fine": model.explain(path, label, kind="fine").fused}

        def score(batch, index=index):
            return model.predict_pixels(batch)[:, index]

        for name, found in areas.items():
            heat = heats[name] if name in heats else getattr(evidence, name)
            found.append(tuple(curve(score, pixels, heat, steps=5).area for curve in (deletion, insertion)))
    mean = {name: np.mean(found, axis=0) for name, found in areas.items()}
    for name in ("fused", "semantic", "fine"):
        assert mean[name][0] < mean["random"][0], name
        assert mean[name][1] > mean["random"][1], name
