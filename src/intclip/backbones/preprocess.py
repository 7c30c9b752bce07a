"""Photo to pixels: resize the short side, centre crop, scale to [0, 1], normalise.

torch is imported only where a tensor is created, because a prediction from a cached graph uses this module without
torch.
"""

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from torch import Tensor

_Mean = Annotated[float, Field(allow_inf_nan=False)]
_Std = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Preprocess(BaseModel, frozen=True, extra="forbid"):
    """Evaluation preprocessing, stored in every bundle.

    Attributes:
        size: Side S of the square output, in pixels.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divisor of these values.
        interpolation: Interpolation of the resize.
        crop: "center" keeps the middle square of the resized photo (CLIP's way); "squash" resizes both sides to S.
    """

    size: Annotated[int, Field(gt=0)]
    mean: tuple[_Mean, _Mean, _Mean]
    std: tuple[_Std, _Std, _Std]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop: Literal["center", "squash"] = "center"

    def __call__(self, image: Image.Image) -> "Tensor":
        """Return pixels (3, S, S), float32, of one PIL image of any mode."""
        import torch

        return self.normalize(torch.from_numpy(self.resize(image)).permute(2, 0, 1))

    def resize(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Return the resized and cropped photo (S, S, 3), uint8, before normalisation."""
        image = image if image.mode == "RGB" else image.convert("RGB")
        resized = image.resize((self.size, self.size), _RESAMPLING[self.interpolation], box=self.source_box(image.size))
        return np.array(resized, dtype=np.uint8)

    def source_box(self, image_size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return the box (left, top, right, bottom), in pixels, of a (width, height) photo that the output shows.

        Resizing only this box equals CLIP's resize and crop, because Pillow's filters read beyond the box, and the box
        has the scale of the whole resize (rounded as in CLIP). Pillow stores the box in single precision, so about one
        value in two thousand is off by one of the 256 levels.
        """
        width, height = image_size
        if self.crop == "squash":
            return (0.0, 0.0, float(width), float(height))
        short = min(width, height)
        box = []
        for side in (width, height):
            resized = int(self.size * side / short)
            start = round((resized - self.size) / 2)
            box.append((start * side / resized, min((start + self.size) * side / resized, float(side))))
        (left, right), (top, bottom) = box
        return (left, top, right, bottom)

    def normalize(self, pixels: "Tensor") -> "Tensor":
        """Normalise uint8 pixels (…, 3, S, S) to float32 of the same shape."""
        import torch

        mean = torch.tensor(self.mean, device=pixels.device).view(3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(3, 1, 1)
        return (pixels.float() / 255 - mean) / std
