"""Preprocessing against OpenAI's transform: resize the short side, round, crop the middle, normalise."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.testing import assert_close

from intclip.backbones.clip import MEAN, STD
from intclip.backbones.preprocess import Preprocess

PHOTOS = [
    (224, 224), (225, 224), (224, 225), (223, 223), (640, 480), (481, 641), (1023, 767), (767, 1023), (449, 448),
    (227, 341), (37, 53), (999, 998), (2000, 1333), (1001, 501),
]  # fmt: skip
STRIPS = [(1, 1), (3, 500), (500, 3), (300, 1199), (1200, 301), (1, 90)]


def openai_crop(image, size):
    """torchvision's Resize and CenterCrop, as OpenAI calls them, in Pillow's terms."""
    width, height = image.size
    if width <= height:
        resized = image.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        resized = image.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    left = round((resized.width - size) / 2.0)
    top = round((resized.height - size) / 2.0)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def levels_apart(image_size, size):
    """Largest difference on noise, in levels of 255, and the share of values that differ at all."""
    noise = np.random.default_rng(0).integers(0, 256, (image_size[1], image_size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = Preprocess(size=size, mean=MEAN, std=STD).resize(image).astype(int)
    difference = np.abs(ours - openai_crop(image, size).astype(int))
    return difference.max(), (difference > 0).mean()


# Pillow keeps the box of a resize in single precision: here and there a value is rounded to the next level, in narrow
# strips, where a source pixel becomes a hundred, to the one after it.
@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("image_size", PHOTOS)
def test_same_pixels_as_openais_transform(image_size, size):
    largest, share = levels_apart(image_size, size)
    assert largest <= 1
    assert share < 0.002


@pytest.mark.parametrize("size", [224, 336])
@pytest.mark.parametrize("image_size", STRIPS)
def test_nearly_the_same_pixels_in_narrow_strips(image_size, size):
    largest, _ = levels_apart(image_size, size)
    assert largest <= 3


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
def test_same_pixels_as_openais_transform_on_photos(name):
    image = Image.fromarray(getattr(data, name)())
    preprocess = Preprocess(size=224, mean=MEAN, std=STD)
    plain = openai_crop(image, 224)
    difference = np.abs(preprocess.resize(image).astype(int) - plain.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.0005
    normalised = (plain.transpose(2, 0, 1) / 255 - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    ours = preprocess(image)
    assert ours.dtype == torch.float32
    assert_close(ours.double(), torch.from_numpy(normalised), rtol=0, atol=1.01 / 255 / min(STD))
    assert (ours.double() - torch.from_numpy(normalised)).abs().median() < 1e-6


def test_modes_become_rgb():
    preprocess = Preprocess(size=32, mean=MEAN, std=STD)
    image = Image.fromarray(data.chelsea())
    assert torch.equal(preprocess(image.convert("RGBA")), preprocess(image))
    grey = preprocess.resize(image.convert("L"))
    assert (grey[..., 0] == grey[..., 1]).all()


def test_squash_shows_the_whole_photo():
    image = Image.fromarray(data.rocket())
    squashed = Preprocess(size=64, mean=MEAN, std=STD, crop="squash").resize(image)
    assert (squashed == np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))).all()
