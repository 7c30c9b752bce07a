"""Finer region logits from the whole photo and enlarged parts of it.

A map of 7×7 regions is coarse. Nine windows of half the photo's side, in three rows of three that overlap
by half, are enlarged to the model's input size; their regions are half as wide. The map is the mean of the whole
photo's region logits and the windows', averaged where windows overlap. The windows contain only pixels that the model
sees in the whole photo. Ten passes, no gradient, any engine; also works for models with a fixed input size, such as a
ViT.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image

from intclip.evidence.heat import upsample

Array = npt.NDArray[np.float32]

WINDOWS = 3
"""Windows per row, and rows: half a window apart, so that they end at the photo's edges."""
VIEWS = 1 + WINDOWS**2
"""The whole photo and its windows."""


def photo_views(pixels: Array) -> Array:
    """Return the whole photo, then its windows row by row: (10, 3, S, S) from normalised pixels (3, S, S)."""
    size = pixels.shape[-1]
    channels = [Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32)) for channel in pixels]
    large = np.stack([np.asarray(one.resize((2 * size, 2 * size), Image.Resampling.BICUBIC)) for one in channels])
    places = [row * size // 2 for row in range(WINDOWS)]
    windows = [large[:, top : top + size, left : left + size] for top in places for left in places]
    return np.stack([pixels, *windows]).astype(np.float32, copy=False)


def join_views(maps: npt.NDArray[np.floating]) -> Array:
    """Merge the maps (10, h, h) of `photo_views` to one (4h, 4h), unscaled.

    Each map is placed at its view, bilinear between its regions' centres, and the result is averaged as the module
    describes.
    """
    side = maps.shape[-1]
    total, count = np.zeros((2, 4 * side, 4 * side), dtype=np.float64)
    places = [slice(row * side, (row + 2) * side) for row in range(WINDOWS)]
    boxes = [(rows, columns) for rows in places for columns in places]
    for box, window in zip(boxes, maps[1:], strict=True):
        total[box] += upsample(window, 2 * side)
        count[box] += 1
    joined: Array = ((upsample(maps[0], 4 * side) + total / count) / 2).astype(np.float32)
    return joined
