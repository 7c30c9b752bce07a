"""The fine kind: views are parts of the photo, and their maps are merged at their positions."""

import numpy as np
import pytest
import torch

from intclip.evidence.heat import upsample
from intclip.evidence.views import VIEWS, join_views, photo_views

SIDE = 24
GRID = 3


def places(step):
    """Return the starts of the nine windows, row by row."""
    return [(row * step, column * step) for row in range(3) for column in range(3)]


def test_views_are_the_photo_and_its_parts_enlarged():
    """In a linear ramp, each window starts a quarter of the side later and has half the slope."""
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    pixels = np.stack([np.tile(ramp, (SIDE, 1)), np.tile(ramp[:, None], (1, SIDE)), np.full((SIDE, SIDE), 3)])
    views = photo_views(pixels.astype(np.float32))
    assert views.shape == (VIEWS, 3, SIDE, SIDE)
    assert views.dtype == np.float32
    np.testing.assert_array_equal(views[0], pixels.astype(np.float32))
    np.testing.assert_allclose(views[:, 2], 3, atol=1e-5)
    slope = ramp[1] - ramp[0]
    inner = slice(4, -4)  # bicubic bends a ramp at the photo's border
    for view, (top, left) in zip(views[1:], places(SIDE // 4), strict=True):
        # Pixel i of a window lies at left + (i + 1/2) / 2 of the photo's side, pixel j of the photo at j + 1/2.
        along = -1 + slope * (left + (np.arange(SIDE) + 0.5) / 2 - 0.5)
        down = -1 + slope * (top + (np.arange(SIDE) + 0.5) / 2 - 0.5)
        np.testing.assert_allclose(view[0, inner, inner], np.tile(along, (SIDE, 1))[inner, inner], atol=1e-5)
        np.testing.assert_allclose(view[1, inner, inner], np.tile(down[:, None], (1, SIDE))[inner, inner], atol=1e-5)


def test_windows_of_one_photo_agree_where_they_overlap():
    views = photo_views(np.random.default_rng(0).standard_normal((3, SIDE, SIDE)).astype(np.float32))
    half = SIDE // 2
    np.testing.assert_array_equal(views[1][:, :, half:], views[2][:, :, :half])
    np.testing.assert_array_equal(views[1][:, half:], views[4][:, :half])
    np.testing.assert_array_equal(views[5][:, half:, half:], views[9][:, :half, :half])


def test_joining_is_the_mean_of_what_was_read_at_each_place():
    """Slow reference: position by position, over the windows that contain it."""
    maps = np.random.default_rng(0).standard_normal((VIEWS, GRID, GRID)).astype(np.float32)
    found = join_views(maps)
    assert found.shape == (4 * GRID, 4 * GRID)
    whole, windows = upsample(maps[0], 4 * GRID), [upsample(one, 2 * GRID) for one in maps[1:]]
    for i in range(4 * GRID):
        for j in range(4 * GRID):
            read = [
                window[i - top, j - left]
                for window, (top, left) in zip(windows, places(GRID), strict=True)
                if 0 <= i - top < 2 * GRID and 0 <= j - left < 2 * GRID
            ]
            assert len(read) in (1, 2, 4)
            assert found[i, j] == pytest.approx((whole[i, j] + np.mean(read)) / 2, abs=1e-5)


def test_maps_that_do_not_vary_stay_what_they_are():
    np.testing.assert_allclose(join_views(np.full((VIEWS, 7, 7), -2.5)), -2.5, atol=1e-6)
    maps = np.full((VIEWS, 7, 7), 1.0)
    maps[0] = 3
    np.testing.assert_allclose(join_views(maps), 2, atol=1e-6)


class _Pixelwise(torch.nn.Module):
    """A fake backbone whose regions are means of their pixels, independent of other pixels."""

    def __init__(self, grid):
        super().__init__()
        self.grid = grid

    def forward(self, views):
        return torch.nn.functional.adaptive_avg_pool2d(views.mean(dim=1), self.grid)


def test_a_model_that_reads_pixels_alone_gets_a_finer_map_of_the_same_photo():
    """Limiting case: a region's evidence is its mean pixel. A spot smaller than a region is localised better."""
    pixels = np.zeros((3, SIDE, SIDE), np.float32)
    pixels[:, 8:12, 8:12] = 1  # a quarter of the middle one of nine regions, up and left in it
    read = _Pixelwise(GRID)
    fine = upsample(join_views(read(torch.from_numpy(photo_views(pixels))).numpy()), SIDE)
    coarse = upsample(read(torch.from_numpy(pixels[None])).numpy()[0], SIDE)
    spot = np.array([9.5, 9.5])
    far = [np.linalg.norm(np.argwhere(heat == heat.max()).mean(axis=0) - spot) for heat in (fine, coarse)]
    assert far[0] < 1 < far[1]
