"""Corruptions typical of social media, at five strengths: JPEG, blur, noise, downscaling, screenshots with text.

After Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations (ICLR
2019), with the same five levels and mostly the same kinds; the parameters are ours. A photo is first reduced to a
short side of at most `SIDE` pixels, as by an upload, so that a strength means the same for every photo.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIDE = 448
STRENGTHS = (1, 2, 3, 4, 5)

_QUALITY = (40, 25, 15, 8, 4)
_RADIUS = (0.004, 0.008, 0.013, 0.020, 0.030)  # of the short side
_DEVIATION = (10, 20, 32, 48, 70)  # of 255
_SCALE = (0.5, 0.3, 0.2, 0.13, 0.08)
_KEPT = (0.85, 0.7, 0.58, 0.46, 0.36)  # of the screen's area
_LINES = ("me when it is finally friday", "tag somebody who needs this", "swipe up for more", "1,204 likes")


def jpeg(image: Image.Image, strength: int, _: np.random.Generator) -> Image.Image:
    """Save the photo as JPEG, quality 40 to 4, and read it back."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY[strength - 1])
    return Image.open(stream).convert("RGB")


def blur(image: Image.Image, strength: int, _: np.random.Generator) -> Image.Image:
    """A Gaussian blur of 0.4 to 3 % of the short side."""
    return image.filter(ImageFilter.GaussianBlur(_RADIUS[strength - 1] * min(image.size)))


def noise(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """Gaussian noise in every channel, deviation 10 to 70 of 255."""
    pixels = np.asarray(image, dtype=np.float32)
    noisy = pixels + rng.normal(0, _DEVIATION[strength - 1], pixels.shape).astype(np.float32)
    return Image.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def downscale(image: Image.Image, strength: int, _: np.random.Generator) -> Image.Image:
    """Shrink both sides to a share of 0.5 to 0.08, and enlarge the result again."""
    small = (max(1, round(side * _SCALE[strength - 1])) for side in image.size)
    width, height = small
    return image.resize((width, height), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)


def screenshot(image: Image.Image, strength: int, rng: np.random.Generator) -> Image.Image:
    """A screenshot of the photo: borders in one colour, a status bar, and lines of text above, below and over it.

    The photo keeps 85 to 36 % of the screen's area; a line of text is added with every strength.
    """
    shrink = _KEPT[strength - 1] ** 0.5
    width, height = image.size
    dark = bool(rng.integers(2))
    ground, ink = ((18, 18, 18), (235, 235, 235)) if dark else ((250, 250, 250), (20, 20, 20))
    screen = Image.new("RGB", image.size, ground)
    inner = image.resize((max(1, round(width * shrink)), max(1, round(height * shrink))), Image.Resampling.BICUBIC)
    left, top = (width - inner.width) // 2, (height - inner.height) // 2
    screen.paste(inner, (left, top))
    draw = ImageDraw.Draw(screen)
    font = ImageFont.load_default(max(8.0, min(image.size) / 22))
    draw.text((width * 0.03, 1), f"{rng.integers(1, 13)}:{rng.integers(60):02d}", fill=ink, font=font)
    places = (top + inner.height * 0.82, top + inner.height, top * 0.4, top + inner.height * 0.08)
    for line in range(min(strength, len(places))):
        text = _LINES[int(rng.integers(len(_LINES)))]
        over = line in (0, 3)  # on the photo, with an outline
        outline = {"fill": "white", "stroke_width": 2, "stroke_fill": "black"} if over else {"fill": ink}
        draw.text((width / 2, places[line]), text, font=font, anchor="ma", **outline)
    return screen


CORRUPTIONS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "jpeg": jpeg,
    "blur": blur,
    "noise": noise,
    "downscale": downscale,
    "screenshot": screenshot,
}
"""Photo (RGB), strength from 1 to 5 and random numbers to a photo of the same size."""


class Corruption:
    """One corruption of every photo, always the same for a photo; see `intclip.data.transforms.PhotoChange`.

    Args:
        kind: One of `CORRUPTIONS`.
        strength: From 1 to 5.
        seed: Seed of its random numbers.
    """

    def __init__(self, kind: str, strength: int, *, seed: int = 0) -> None:
        if kind not in CORRUPTIONS or strength not in STRENGTHS:
            raise ValueError(
                f"unknown corruption {kind!r} of strength {strength}; known: {', '.join(CORRUPTIONS)}, 1-5"
            )
        self._corrupt, self._strength = CORRUPTIONS[kind], strength
        self._seed = (seed, list(CORRUPTIONS).index(kind), strength)

    def __call__(self, image: Image.Image, *, index: int) -> Image.Image:
        """The `index`-th photo, corrupted; its short side is at most `SIDE`."""
        if (short := min(image.size)) > SIDE:
            size = (round(image.width * SIDE / short), round(image.height * SIDE / short))
            image = image.resize(size, Image.Resampling.BICUBIC)
        rng = np.random.default_rng([*self._seed, 0, 0, index])
        return self._corrupt(image.convert("RGB"), self._strength, rng)
