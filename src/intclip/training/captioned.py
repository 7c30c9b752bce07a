"""Captioned photos and their frozen features."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import Backbone
from intclip.data.loading import pixel_batches
from intclip.data.reading import read_json
from intclip.errors import DatasetError
from intclip.inference.engines import Engine, compile_module
from intclip.inference.graph import example_pixels

Progress = Callable[[int, int], None]
"""Called with completed and total units."""


@dataclass(frozen=True)
class CaptionedPhotos:
    """Photos and their captions, at least one each.

    Attributes:
        photos: N files.
        captions: T texts.
        owner: (T,) int64, each caption's photo; captions of a photo are consecutive.
        group: (N,) int64, equal for photos with equal first captions, such as photos of one class.
    """

    photos: list[Path]
    captions: list[str]
    owner: Tensor
    group: Tensor


def read_captions(root: Path, file: str, leave_out: Sequence[str] = ()) -> CaptionedPhotos:
    """Read a JSON file of photo name to captions, with the photos in `images/`.

    Args:
        root: The folder.
        file: Name of the JSON file. Photo names may omit ".jpg".
        leave_out: Prefixes of photo names to skip.

    Raises:
        DatasetError: The file is missing or malformed, or a photo is missing.
    """
    path = root / file
    content = read_json(path)
    if not isinstance(content, dict) or not content:
        raise DatasetError(f'{path}: expected photo names with their captions, such as {{"a.jpg": ["A dog ."]}}')
    photos: list[Path] = []
    captions: list[str] = []
    owner: list[int] = []
    first: dict[str, int] = {}
    group: list[int] = []
    for name, texts in content.items():
        if name.startswith(tuple(leave_out)):
            continue
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
            raise DatasetError(f"{path}: {name!r} needs a list of captions, none of them empty")
        photo = root / "images" / name
        photo = photo if photo.suffix else photo.with_suffix(".jpg")
        if not photo.is_file():
            raise DatasetError(f"{path}: no photo {photo}")
        owner += [len(photos)] * len(texts)
        group.append(first.setdefault(texts[0], len(first)))
        photos.append(photo)
        captions += texts
    return CaptionedPhotos(photos, captions, torch.tensor(owner), torch.tensor(group))


def imagenet_names() -> list[str]:
    """Return ImageNet's 1,000 class names in the classifier's order (imagenet-simple-labels, public domain)."""
    text = files("intclip").joinpath("backbones/weights/imagenet_names.txt").read_text(encoding="utf-8")
    return text.splitlines()


@torch.inference_mode()
def photo_views(backbone: Backbone, photos: Sequence[Path], window: int, progress: Progress | None = None) -> Tensor:
    """Compute mean features (N, V, C), float16, of each photo and of parts of it; the first view is the whole photo.

    The other views are the means over every `window` × `window` part of the last feature map, and the
    same for the mirrored photo.

    Raises:
        ImageError: A photo cannot be read.
    """
    engine = compile_module(_LastMap(backbone), example_pixels(backbone), device="cpu")
    batches: list[Tensor] = []
    done = 0
    for batch in pixel_batches(photos, backbone.preprocess, 32):
        if batch.errors:
            raise batch.errors[0][1]
        views = [view for pixels in (batch.pixels, batch.pixels.flip(3)) for view in _views(engine, pixels, window)]
        batches.append(torch.stack(views, dim=1).half())
        done += len(batch.indices)
        if progress is not None:
            progress(done, len(photos))
    return torch.cat(batches)


class _LastMap(nn.Module):
    """A backbone's frozen layers up to its last feature map, for an engine."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Tensor:
        deep: Tensor = self.backbone.deep(self.backbone.trunk(pixels))
        return deep


def _views(engine: Engine, pixels: Tensor, window: int) -> Iterator[Tensor]:
    (array,) = engine(pixels.numpy()).values()
    deep = torch.from_numpy(array)
    yield deep.mean(dim=(2, 3))
    parts = F.avg_pool2d(deep, min(window, *deep.shape[2:]), stride=1)
    yield from parts.flatten(2).unbind(2)
