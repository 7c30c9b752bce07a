import numpy as np
import pytest
import skimage.data
from makers import photo
from PIL import Image
from pydantic import ValidationError

from intclip.backbones.preprocess import Preprocess
from intclip.data.transforms import OPERATIONS, Augment, AugmentConfig, cutout, rand_augment, random_box

PREPROCESS = Preprocess(size=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CAT = Image.fromarray(skimage.data.chelsea())


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.tobytes() == b.tobytes()


def test_views_are_reproducible_and_differ_by_seed_epoch_view_and_index() -> None:
    augment = Augment(AugmentConfig(), PREPROCESS, seed=3)
    first = augment(CAT, epoch=1, index=2, view=0)
    assert same(first, Augment(AugmentConfig(), PREPROCESS, seed=3)(CAT, epoch=1, index=2))
    others = [
        augment(CAT, epoch=2, index=2),
        augment(CAT, epoch=1, index=3),
        augment(CAT, epoch=1, index=2, view=1),
        Augment(AugmentConfig(), PREPROCESS, seed=4)(CAT, epoch=1, index=2),
    ]
    assert not any(same(first, other) for other in others)


def test_flip_mirrors_what_evaluation_sees() -> None:
    view = Augment(AugmentConfig(crop="eval", flip=1.0, cutout=0, operations=0), PREPROCESS)(CAT, epoch=0, index=0)
    plain = PREPROCESS.resize(CAT)
    np.testing.assert_array_equal(np.asarray(view), plain[:, ::-1])


def test_views_are_the_size_of_the_model_and_photos_stay_untouched() -> None:
    before = CAT.tobytes()
    for size in ((64, 64), (300, 20), (20, 300), (1, 1)):
        image = CAT.resize(size)
        for index in range(6):
            view = Augment(AugmentConfig(), PREPROCESS)(image, epoch=0, index=index)
            assert view.size == (64, 64)
            assert view.mode == "RGB"
    assert CAT.tobytes() == before


def test_without_augmentation_a_view_is_what_evaluation_sees() -> None:
    config = AugmentConfig(crop="eval", flip=0, cutout=0, operations=0)
    for crop in ("center", "squash"):
        preprocess = PREPROCESS.model_copy(update={"crop": crop})
        view = Augment(config, preprocess)(CAT, epoch=0, index=0)
        np.testing.assert_array_equal(np.asarray(view), preprocess.resize(CAT))
        np.testing.assert_array_equal(preprocess.resize(view), preprocess.resize(CAT))


def test_random_boxes_keep_area_and_ratio_in_range() -> None:
    rng = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = random_box(rng, (200, 150), (0.3, 0.8), (0.75, 1.25))
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 150
        areas.append((right - left) * (bottom - top) / 30_000)
        ratios.append((right - left) / (bottom - top))
    assert 0.3 <= min(areas) < 0.33
    assert 0.77 < max(areas) <= 0.8 + 1e-9
    assert 0.75 - 1e-9 <= min(ratios) < max(ratios) <= 1.25 + 1e-9


def test_a_very_long_photo_gets_the_largest_centred_box() -> None:
    left, top, right, bottom = random_box(np.random.default_rng(0), (1000, 10), (0.9, 1.0), (0.75, 4 / 3))
    assert (top, bottom) == (0, 10)
    assert right - left == pytest.approx(40 / 3)
    assert left + right == pytest.approx(1000)


def test_cutout_paints_one_square() -> None:
    image = Image.new("RGB", (100, 100), (1, 2, 3))
    painted = [np.asarray(cutout(np.random.default_rng(seed), image, 0.5)) for seed in range(40)]
    for array in painted:
        changed = (array != (1, 2, 3)).any(axis=2)
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert 24 <= len(rows) <= 51
        assert 24 <= len(columns) <= 51
        assert len(np.unique(array[changed], axis=0)) == 1
    assert np.asarray(image).max() == 3


@pytest.mark.parametrize("position", range(len(OPERATIONS)))
def test_operations_keep_size_and_mode_and_are_the_identity_at_strength_zero(position: int) -> None:
    operation = OPERATIONS[position]
    for strength in (0.0, 0.3, 1.0):
        for sign in (-1, 1):
            result = operation(CAT, strength, sign)
            assert (result.size, result.mode) == (CAT.size, "RGB")
    if position not in (1, 2):  # auto-contrast and equalise have no strength
        assert same(operation(CAT, 0.0, 1), CAT)
    if position != 0:
        assert not same(operation(CAT, 1.0, 1), CAT)


def test_there_are_fourteen_operations_and_all_are_drawn() -> None:
    assert len(OPERATIONS) == 14
    results = {rand_augment(np.random.default_rng(seed), CAT, 1, 20).tobytes() for seed in range(200)}
    assert len(results) >= 14 + 8  # most differ by sign, too
    assert same(rand_augment(np.random.default_rng(0), CAT, 0, 20), CAT)


def test_signs_move_both_ways() -> None:
    shift = OPERATIONS[12]
    right, left = np.asarray(shift(photo(), 0.5, -1)), np.asarray(shift(photo(), 0.5, 1))
    np.testing.assert_array_equal(right[:, 9:], np.asarray(photo())[:, :-9])
    np.testing.assert_array_equal(left[:, :-9], np.asarray(photo())[:, 9:])


@pytest.mark.parametrize(
    "wrong",
    [{"crop": "five"}, {"scale": (0.9, 0.5)}, {"scale": (0, 1)}, {"ratio": (0, 1)}, {"flip": 2}, {"magnitude": 31},
     {"operations": -1}, {"cutout": 1.5}, {"colour": 1}],
)  # fmt: skip
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)
