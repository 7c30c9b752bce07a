"""Draw maps: scaling to [0, 1], colours, and overlays on photos."""

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Heat = npt.NDArray[np.float32]
"""A map (H, W), float32 in [0, 1]."""

LEGEND = ("least", "most")
"""Legend of the dark and the bright end: each map has its own range, so 0 is its lowest value, not zero evidence."""

# Colours of matplotlib's "inferno" (CC0) at eleven even steps: perceptually uniform, and dark to light, so that it
# also works without colour.
_INFERNO = (
    "000004 160b39 420a68 6a176e 932667 bc3754 dd513a f37819 fca50a f6d746 fcffa4".split()  # noqa: SIM905 (a palette)
)


def upsample(logits: npt.NDArray[np.floating[Any]], size: int) -> Heat:
    """Resize region logits (h, w) to a map (size, size), bilinear between the regions' centres."""
    image = Image.fromarray(np.ascontiguousarray(logits, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32).copy()


def unit_range(values: npt.NDArray[np.floating[Any]]) -> Heat:
    """Scale values to [0, 1] by their own range; zeros if constant."""
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return np.zeros(values.shape, dtype=np.float32)
    return ((values - low) / (high - low)).astype(np.float32).clip(0, 1)


def overlay(
    photo: Image.Image, heat: Heat, box: tuple[float, float, float, float], *, strength: float = 0.6
) -> Image.Image:
    """Overlay a map on the part of a photo that the model saw, dimming the rest.

    Args:
        photo: Upright, RGB.
        heat: (H, W) in [0, 1].
        box: That part, in the photo's pixels.
        strength: Opacity where the map is 1, in [0, 1]; where it is 0 the photo is unchanged.
    """
    left, top, right, bottom = (round(edge) for edge in box)
    area = (max(right - left, 1), max(bottom - top, 1))
    scaled = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(area, Image.Resampling.BICUBIC)).clip(0, 1)
    canvas = Image.blend(photo, Image.new("RGB", photo.size), 0.55)
    seen = np.asarray(photo.crop((left, top, left + area[0], top + area[1])), dtype=np.float32)
    share = (strength * scaled)[..., None]
    mixed = seen * (1 - share) + colors(scaled) * share
    canvas.paste(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), (left, top))
    return canvas


def colors(heat: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Map values in [0, 1] to RGB (…, 3) in [0, 255], on a perceptually uniform scale from dark to light."""
    stops = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in _INFERNO], dtype=np.float32)
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(heat, places, stops[:, channel]) for channel in range(3)], axis=-1).astype(np.float32)
