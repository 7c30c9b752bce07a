"""Evidence maps: scale, position and overlay."""

import numpy as np
import pytest
from PIL import Image

from intclip.evidence.evidence import make_evidence
from intclip.evidence.heat import colors, overlay, unit_range, upsample

BOX = (10.0, 0.0, 50.0, 40.0)


def one_hot(row, column, side=7):
    regions = np.zeros((side, side), np.float32)
    regions[row, column] = 3
    return regions


def test_upsampling_is_bilinear_between_the_centres_of_regions():
    side, size = 3, 24
    regions = np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)
    found = upsample(regions, size)
    # The slow way: the position of each pixel's centre among the regions' centres, held at the border.
    place = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    low = np.minimum(np.floor(place).astype(int), side - 2)
    share = place - low
    rows = regions[low] * (1 - share)[:, None] + regions[low + 1] * share[:, None]
    expected = rows[:, low] * (1 - share) + rows[:, low + 1] * share
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (3, 5), (6, 2)])
def test_the_brightest_place_is_the_strongest_region(row, column):
    evidence = make_evidence("x", 0.5, {"fused": one_hot(row, column)}, size=224, box=BOX, source="p")
    place = np.argwhere(evidence.fused == evidence.fused.max()).mean(axis=0) / 224 * 7
    assert place == pytest.approx([row + 0.5, column + 0.5], abs=0.6)


def test_each_map_has_its_own_range():
    maps = {"sight": one_hot(0, 0) - 9, "semantic": 100 * one_hot(1, 1), "fused": one_hot(2, 2)}
    evidence = make_evidence("x", 0.5, maps, size=21, box=BOX, source="p")
    for name in maps:
        heat = getattr(evidence, name)
        assert (heat.dtype, heat.shape, heat.min(), heat.max()) == (np.float32, (21, 21), 0, 1)
        np.testing.assert_array_equal(evidence.regions[name], maps[name])
    assert evidence.branches == ("sight", "semantic", "fused")


@pytest.mark.parametrize("name", ["sight", "fused", "semantic"])
def test_a_single_map_stands_for_all_and_says_so(name):
    evidence = make_evidence("x", 0.5, {name: one_hot(2, 2)}, size=21, box=BOX, source="p")
    assert evidence.branches == (name,)
    np.testing.assert_array_equal(evidence.sight, evidence.fused)
    np.testing.assert_array_equal(evidence.semantic, evidence.fused)


def test_a_map_that_does_not_vary_is_empty():
    assert not unit_range(np.full((4, 4), 7.0)).any()
    assert not make_evidence("x", 0.5, {"fused": np.ones((3, 3))}, size=9, box=BOX, source="p").fused.any()


def test_colours_rise_evenly_in_lightness():
    """Readable without colour: perceived lightness grows by about the same at every step."""
    rgb = colors(np.linspace(0, 1, 101)) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert (steps > 0).all()
    assert steps.max() < 2.2 * steps.mean()


def test_an_overlay_of_nothing_leaves_what_the_model_saw_and_dims_the_rest():
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    before, after = np.asarray(photo, float), np.asarray(overlay(photo, np.zeros((24, 24), np.float32), BOX), float)
    assert after.shape == before.shape
    np.testing.assert_array_equal(after[:, 10:50], before[:, 10:50])
    for edge in (np.s_[:, :10], np.s_[:, 50:]):
        assert after[edge].mean() == pytest.approx(0.45 * before[edge].mean(), rel=0.02)


def test_an_overlay_of_everything_takes_the_map_s_colour():
    photo = Image.new("RGB", (40, 40))
    drawn = np.asarray(overlay(photo, np.ones((24, 24), np.float32), (0, 0, 40, 40), strength=1.0))
    np.testing.assert_array_equal(drawn, np.broadcast_to(colors(np.array(1.0)).round(), drawn.shape))
