"""Object masks of photos, from a folder of images or Intentonomy's Mask R-CNN file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intclip.errors import DatasetError

LEAST_SCORE = 0.6
"""Minimum detection score of objects in a mask."""


class Masks:
    """Object masks by photo.

    Args:
        path: A folder with `ID.png` per photo id, white on objects; or a JSON file
            like `coco_maskrcnn.json` of KMnP/intentonomy: "low/ID.jpg" to `scores`, `image_shape` and `masks`, run
            lengths column by column (`counts`, `size`).

    Raises:
        DatasetError: The folder or file is missing, or not JSON.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: Mapping[str, Any] | None = None
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise DatasetError(
                    f"{path}: not JSON: {error}; give a folder of masks, or coco_maskrcnn.json"
                ) from error
            if not isinstance(found, dict):
                raise DatasetError(
                    f"{path}: expected one entry per photo; give a folder of masks, or coco_maskrcnn.json"
                )
            self._found = {Path(name).stem: entry for name, entry in found.items()}
        elif not path.is_dir():
            raise DatasetError(f"data.masks: no such folder or file: {path}; omit it to train without masks")

    def __call__(self, photo: str) -> Image.Image | None:
        """Return the mask of a photo, greyscale, white on objects; None if there is none.

        Raises:
            DatasetError: The file's entry is malformed.
        """
        if self._found is None:
            file = self.path / f"{photo}.png"
            if not file.is_file():
                return None
            with Image.open(file) as opened:
                return opened.convert("L")
        entry = self._found.get(photo)
        return None if entry is None else self._union(photo, entry)

    def _union(self, photo: str, entry: Any) -> Image.Image:
        try:
            height, width = entry["image_shape"][:2]
            union = np.zeros((height, width), dtype=bool)
            for score, mask in zip(entry["scores"], entry["masks"], strict=True):
                if score > LEAST_SCORE:
                    union |= run_lengths(mask["counts"], mask["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.path}, photo {photo}: not scores, image_shape and uncompressed run lengths ({error}); "
                "write masks as ID.png with pycocotools instead"
            ) from error
        return Image.fromarray(union.astype(np.uint8) * 255)


def run_lengths(counts: list[int] | str, size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Decode COCO's uncompressed run lengths (0, 1, 0, 1, … by column) to a mask (height, width)."""
    if isinstance(counts, str):
        raise ValueError("the run lengths are compressed")
    runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return runs.reshape((size[1], size[0])).T
