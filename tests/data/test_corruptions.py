import io

import numpy as np
import pytest
from PIL import Image

from intclip.data.corruptions import CORRUPTIONS, SIDE, STRENGTHS, Corruption


def photo(width: int = 320, height: int = 240) -> Image.Image:
    """Colours with detail of every size."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    planes = [128 + 100 * np.sin(600 * x * x), 128 + 100 * np.sin(500 * y * y), np.where(x > 0.5, 220, 30)]
    return Image.fromarray(np.stack(planes, axis=2).astype(np.uint8))


def change(before: Image.Image, after: Image.Image) -> float:
    return float(np.abs(np.asarray(before, dtype=float) - np.asarray(after, dtype=float)).mean())


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_every_strength_changes_more_than_the_one_before(kind):
    given = photo()
    before = given.tobytes()
    changed = [Corruption(kind, strength)(given, index=3) for strength in STRENGTHS]
    assert all(each.size == given.size and each.mode == "RGB" for each in changed)
    amounts = [change(given, each) for each in changed]
    assert amounts == sorted(amounts)
    assert amounts[0] > 0.1
    assert given.tobytes() == before  # the caller's photo stays


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_photo_is_always_corrupted_alike(kind):
    corruption = Corruption(kind, 4)
    first, again, other = (corruption(photo(), index=index).tobytes() for index in (5, 5, 6))
    assert first == again
    assert (first != other) == (kind in ("noise", "screenshot"))


def test_strengths_mean_the_same_for_photos_of_any_size():
    large = Corruption("blur", 2)(photo(2000, 1500), index=0)
    assert min(large.size) == SIDE
    assert large.size == (round(2000 * SIDE / 1500), SIDE)
    assert Corruption("blur", 2)(photo(90, 60), index=0).size == (90, 60)


def test_numbers_are_what_they_say():
    grey = Image.new("RGB", (400, 400), (128, 128, 128))
    noisy = np.asarray(Corruption("noise", 2)(grey, index=0), dtype=float)
    assert noisy.std() == pytest.approx(np.sqrt(20**2 + 1 / 12), rel=0.01)  # and the rounding to whole numbers
    stream = io.BytesIO()
    photo().save(stream, "JPEG", quality=15)
    assert change(Image.open(stream), Corruption("jpeg", 3)(photo(), index=0)) == 0
    impulse = Image.new("RGB", (200, 200))
    impulse.putpixel((100, 100), (255, 255, 255))
    blurred = np.asarray(Corruption("blur", 5)(impulse, index=0), dtype=float)[..., 0]
    rows = np.arange(200) - 100
    spread = np.sqrt((blurred.sum(axis=1) * rows**2).sum() / max(blurred.sum(), 1))
    assert spread < 3 * 0.03 * 200


def test_a_screenshot_keeps_the_photo_smaller_inside_a_border():
    white = Image.new("RGB", (300, 300), (255, 0, 0))
    for strength, kept in zip(STRENGTHS, (0.85, 0.7, 0.58, 0.46, 0.36), strict=True):
        shot = np.asarray(Corruption("screenshot", strength)(white, index=0))
        red = (shot == (255, 0, 0)).all(axis=2)
        assert kept - 0.12 < red.mean() <= kept + 0.01  # text lies over some of it
        assert not red[:2].any()
        assert not red[:, :2].any()


@pytest.mark.parametrize(("kind", "strength"), [("rain", 1), ("jpeg", 0), ("jpeg", 6)])
def test_unknown_kinds_and_strengths_are_refused(kind, strength):
    with pytest.raises(ValueError, match=kind):
        Corruption(kind, strength)
