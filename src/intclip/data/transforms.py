"""Training augmentation (crop, flip, Cutout, RandAugment), deterministic in seed, epoch and photo."""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from pydantic import BaseModel, Field, model_validator

from intclip.backbones.preprocess import Preprocess

_FILL = (124, 116, 104)  # ImageNet's mean colour, for areas uncovered by shifts and rotations
_MAX_MAGNITUDE = 30


class PhotoChange(Protocol):
    """Transforms a photo before preprocessing: an `Augment` of one epoch and view, or a `Corruption`."""

    def __call__(self, image: Image.Image, *, index: int) -> Image.Image:
        """Transform the `index`-th photo."""


class AugmentConfig(BaseModel, frozen=True, extra="forbid"):
    """Augmentation settings; the defaults are DualCoOp's Cutout and RandAugment after a crop.

    Attributes:
        crop: A random crop ("random"), or the crop used for evaluation ("eval").
        scale: Smallest and largest share of the photo's area that a random crop keeps.
        ratio: Smallest and largest width over height of a random crop, before it is made square.
        flip: Probability of mirroring left to right.
        cutout: Side of Cutout's square as a share of the view's side; 0 for none.
        operations: Number of RandAugment operations; 0 for none.
        magnitude: Strength of RandAugment, 0 to 30.
    """

    crop: str = Field(default="random", pattern="^(random|eval)$")
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = Field(default=0.5, ge=0, le=1)
    cutout: float = Field(default=0.5, ge=0, le=1)
    operations: int = Field(default=2, ge=0, le=14)
    magnitude: float = Field(default=9, ge=0, le=_MAX_MAGNITUDE)

    @model_validator(mode="after")
    def _ranges(self) -> "AugmentConfig":
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be two shares, smaller first, within (0, 1]; got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be two positive numbers, smaller first; got {self.ratio}")
        return self


class Augment:
    """PIL photo to PIL view (S × S), determined by (seed, epoch, view, index).

    Args:
        config: Settings.
        preprocess: Preprocessing with size S, resampling and evaluation crop.
        seed: Seed of the run.
    """

    def __init__(self, config: AugmentConfig, preprocess: Preprocess, *, seed: int = 0) -> None:
        self.config = config
        self.preprocess = preprocess
        self.seed = seed

    def __call__(self, image: Image.Image, *, epoch: int, index: int, view: int = 0) -> Image.Image:
        """Return the view of the `index`-th photo in this epoch; `view` distinguishes several views per epoch."""
        rng, config = self._random(epoch, index, view), self.config
        image = self._laid_out(rng, image)
        if config.cutout > 0:
            image = cutout(rng, image, config.cutout)
        return rand_augment(rng, image, config.operations, config.magnitude)

    def layout(self, image: Image.Image, *, epoch: int, index: int, view: int = 0) -> Image.Image:
        """Crop and mirror a picture aligned with the `index`-th photo, such as a mask, like the view.

        Cutout and RandAugment, which may rotate or shift the photo, are not applied.
        """
        return self._laid_out(self._random(epoch, index, view), image)

    def _random(self, epoch: int, index: int, view: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, view, index])

    def _laid_out(self, rng: np.random.Generator, image: Image.Image) -> Image.Image:
        size, config = self.preprocess.size, self.config
        if config.crop == "random":
            box = random_box(rng, image.size, config.scale, config.ratio)
        else:
            box = self.preprocess.source_box(image.size)
        resampling = getattr(Image.Resampling, self.preprocess.interpolation.upper())
        image = image.resize((size, size), resampling, box=box)
        return ImageOps.mirror(image) if rng.random() < config.flip else image


def random_box(
    rng: np.random.Generator, image_size: tuple[int, int], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Draw a random crop (left, top, right, bottom) of a (width, height) photo, in pixels (Szegedy et al. 2015).

    Its share of the area is uniform in `scale`, its aspect ratio log-uniform in `ratio`; after ten failed
    attempts, it is the largest centred crop within `ratio`.
    """
    width, height = image_size
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        crop_width, crop_height = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if crop_width <= width and crop_height <= height:
            left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
            return (left, top, min(left + crop_width, width), min(top + crop_height, height))
    aspect = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = min(width, height * aspect), min(height, width / aspect)
    left, top = (width - crop_width) / 2, (height - crop_height) / 2
    return (left, top, left + crop_width, top + crop_height)


def cutout(rng: np.random.Generator, image: Image.Image, share: float) -> Image.Image:
    """Paint a square of side `share` × the photo's side, centred anywhere, in one random colour (DeVries 2017)."""
    side_x, side_y = image.width * share / 2, image.height * share / 2
    x, y = rng.uniform(0, image.width), rng.uniform(0, image.height)
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((x - side_x, y - side_y, x + side_x - 1, y + side_y - 1), fill=colour)
    return image


def rand_augment(rng: np.random.Generator, image: Image.Image, operations: int, magnitude: float) -> Image.Image:
    """Apply `operations` of RandAugment's fourteen, drawn with replacement (Cubuk et al. 2020)."""
    for _ in range(operations):
        operation = OPERATIONS[int(rng.integers(len(OPERATIONS)))]
        sign = 1 if rng.random() < 0.5 else -1
        image = operation(image, magnitude / _MAX_MAGNITUDE, sign)
    return image


def _affine(image: Image.Image, x_shear: float, x_shift: float, y_shear: float, y_shift: float) -> Image.Image:
    matrix = (1.0, x_shear, x_shift, y_shear, 1.0, y_shift)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=_FILL)


def _posterize(image: Image.Image, strength: float, _: int) -> Image.Image:
    return ImageOps.posterize(image, 8 - round(4 * strength))


def _solarize(image: Image.Image, strength: float, _: int) -> Image.Image:
    return ImageOps.solarize(image, round(256 * (1 - strength)))


def _rotate(image: Image.Image, strength: float, sign: int) -> Image.Image:
    return image.rotate(sign * 30 * strength, fillcolor=_FILL)


def _enhanced(
    enhancer: Callable[[Image.Image], ImageEnhance._Enhance],
) -> Callable[[Image.Image, float, int], Image.Image]:
    def apply(image: Image.Image, strength: float, sign: int) -> Image.Image:
        return enhancer(image).enhance(1 + sign * 0.9 * strength)

    return apply


OPERATIONS: tuple[Callable[[Image.Image, float, int], Image.Image], ...] = (
    lambda image, strength, sign: image,
    lambda image, strength, sign: ImageOps.autocontrast(image),
    lambda image, strength, sign: ImageOps.equalize(image),
    _rotate,
    _solarize,
    _posterize,
    _enhanced(ImageEnhance.Color),
    _enhanced(ImageEnhance.Contrast),
    _enhanced(ImageEnhance.Brightness),
    _enhanced(ImageEnhance.Sharpness),
    lambda image, strength, sign: _affine(image, sign * 0.3 * strength, 0, 0, 0),
    lambda image, strength, sign: _affine(image, 0, 0, sign * 0.3 * strength, 0),
    lambda image, strength, sign: _affine(image, 0, sign * 0.45 * strength * image.width, 0, 0),
    lambda image, strength, sign: _affine(image, 0, 0, 0, sign * 0.45 * strength * image.height),
)
"""RandAugment's operations (photo, strength in [0, 1], sign) with the published ranges: identity, auto-contrast,
equalise, rotate ±30°, solarise, posterise to 4 bits, colour, contrast, brightness and sharpness 1 ± 0.9, shear ±0.3,
and shift ±0.45 of the side, both ways each."""
