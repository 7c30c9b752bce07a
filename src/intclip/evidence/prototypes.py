"""What MCCL's prototypes stand for: the patches nearest to them, as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from intclip.data.images import read_image
from intclip.errors import ImageError, IntclipError
from intclip.evidence.pictures import INK, PAPER, drawable, font, save_picture
from intclip.methods.mccl.model import MCCL

TILE = 112
"""Side of a patch in the picture, in pixels."""
CONTEXT = 0.25
"""Side of what is shown around a patch, as a share of the photo's side: features see further than their cell."""


@dataclass(order=True, frozen=True)
class Patch:
    """A patch near a prototype.

    Attributes:
        cosine: To the prototype.
        photo: Where it is from.
        row: Middle of the patch as a share of the photo's height.
        column: Likewise.
    """

    cosine: float
    photo: Path = field(compare=False)
    row: float = field(compare=False)
    column: float = field(compare=False)


@dataclass(frozen=True)
class Prototype:
    """A prototype and the patches nearest to it, nearest first, one a photo.

    Attributes:
        stage: Stage of the backbone.
        index: In the stage's pool.
        label: Class for which it was made; None where it started at random.
        usage: Share of patches that are nearest to it.
        patches: Nearest first.
    """

    stage: int
    index: int
    label: str | None
    usage: float
    patches: list[Patch]


@torch.no_grad()
def nearest_patches(
    method: MCCL, photos: Iterable[Path], chosen: Mapping[int, Sequence[int]], *, count: int = 5, batch_size: int = 16
) -> list[Prototype]:
    """Patches nearest to prototypes over photos.

    Args:
        method: Trained.
        photos: Those that cannot be read are left out.
        chosen: Stage to indices of prototypes.
        count: Patches of each.
        batch_size: Photos computed at once.

    Raises:
        IntclipError: No photo could be read.
    """
    method.eval()
    best: dict[tuple[int, int], list[Patch]] = {
        (stage, index): [] for stage, found in chosen.items() for index in found
    }
    seen = False
    for paths, pixels in _batches(method, photos, batch_size):
        seen = True
        features = method.backbone.features(pixels, method.needs)
        for stage, patches in method.patches(features).items():
            if stage not in chosen:
                continue
            indices = list(chosen[stage])
            cosines = method.stages[stage].pool.similarities(patches)[..., indices]
            _, height, width, _ = cosines.shape
            values, cells = cosines.flatten(1, 2).max(dim=1)
            for b, path in enumerate(paths):
                for i, index in enumerate(indices):
                    row, column = divmod(int(cells[b, i]), width)
                    patch = Patch(float(values[b, i]), path, (row + 0.5) / height, (column + 0.5) / width)
                    kept = best[stage, index]
                    kept.append(patch)
                    kept.sort(reverse=True)
                    del kept[count:]
    if not seen:
        raise IntclipError("none of the photos could be read; check the paths")
    return [_prototype(method, stage, index, patches) for (stage, index), patches in best.items()]


def _prototype(method: MCCL, stage: int, index: int, patches: list[Patch]) -> Prototype:
    pool = method.stages[stage].pool
    owner = int(pool.owner[index])
    label = method.taxonomy.names[owner] if owner >= 0 else None
    return Prototype(stage, index, label, float(pool.usage[index] / pool.usage.sum()), patches)


def choose_prototypes(
    method: MCCL, *, stage: int | None = None, label: str | None = None, count: int = 10, seed: int = 0
) -> dict[int, list[int]]:
    """Random prototypes, from the last stage by default.

    Args:
        method: Trained.
        stage: Stage of the backbone; by default the last that the method reads.
        label: Only those made for this label.
        count: At most so many.
        seed: Seed of the random choice.

    Raises:
        IntclipError: The stage is not read, or no prototype was made for the label.
    """
    stage = method.options.stages[-1] if stage is None else stage
    if stage not in method.stages:
        raise IntclipError(f"this model reads stages {', '.join(map(str, method.stages))}, not {stage}")
    owner = method.stages[stage].pool.owner.cpu().numpy()
    known = np.arange(len(owner))
    if label is not None:
        known = known[owner == method.taxonomy.index(label)]
        if not len(known):
            raise IntclipError(f"no prototype of stage {stage} was made for {label!r}; leave the label out")
    picked = np.random.default_rng(seed).permutation(known)[:count]
    return {stage: sorted(picked.tolist())}


def draw_prototypes(method: MCCL, prototypes: Sequence[Prototype], path: Path) -> None:
    """One row a prototype, its nearest patches from left to right, as a PNG or JPEG.

    Raises:
        StorageError: It cannot be written.
    """
    gap, caption = 6, 20
    columns = max((len(prototype.patches) for prototype in prototypes), default=0)
    size = (gap + max(columns, 4) * (TILE + gap), gap + len(prototypes) * (TILE + caption + gap))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for line, prototype in enumerate(prototypes):
        top = gap + line * (TILE + caption + gap)
        made = f"made for {prototype.label}" if prototype.label else "started at random"
        text = (
            f"stage {prototype.stage}, prototype {prototype.index}, {made}, nearest to {prototype.usage:.1%} of patches"
        )
        draw.text((gap, top), drawable(text), fill=INK, font=font(13, drawable(text)))
        for column, patch in enumerate(prototype.patches):
            canvas.paste(_cut(method, patch), (gap + column * (TILE + gap), top + caption))
    save_picture(canvas, path)


def _cut(method: MCCL, patch: Patch) -> Image.Image:
    """The patch with its surroundings, moved inside the photo where it lies at its edge."""
    preprocess = method.backbone.preprocess
    photo = Image.fromarray(preprocess.resize(read_image(patch.photo)))
    side = CONTEXT * photo.width
    left, top = (min(max(at * photo.width - side / 2, 0), photo.width - side) for at in (patch.column, patch.row))
    return photo.resize((TILE, TILE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _batches(method: MCCL, photos: Iterable[Path], size: int) -> Iterable[tuple[list[Path], Tensor]]:
    paths: list[Path] = []
    images: list[Tensor] = []
    for path in photos:
        try:
            images.append(method.backbone.preprocess(read_image(path)))
        except ImageError:
            continue
        paths.append(path)
        if len(paths) == size:
            yield paths, torch.stack(images).to(method.adjacency.device)
            paths, images = [], []
    if paths:
        yield paths, torch.stack(images).to(method.adjacency.device)
