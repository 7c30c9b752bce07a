"""The patches nearest to MCCL's prototypes, as a picture."""

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
"""Side of the area shown around a patch, as a share of the photo's side, because receptive fields exceed cells."""


@dataclass(order=True, frozen=True)
class Patch:
    """A patch near a prototype.

    Attributes:
        cosine: Cosine to the prototype.
        photo: Its photo.
        row: Middle of the patch as a share of the photo's height.
        column: Likewise.
    """

    cosine: float
    photo: Path = field(compare=False)
    row: float = field(compare=False)
    column: float = field(compare=False)


@dataclass(frozen=True)
class Prototype:
    """A prototype and its nearest patches, one per photo.

    Attributes:
        stage: Stage of the backbone.
        index: Index in the stage's pool.
        label: Class it was initialised for; None if random.
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
    """Find the patches of photos nearest to prototypes.

    Args:
        method: The trained method.
        photos: Photos; unreadable ones are skipped.
        chosen: Stage to indices of prototypes.
        count: Patches per prototype.
        batch_size: Photos per batch.

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
    """Draw random prototypes, from the last stage by default.

    Args:
        method: The trained method.
        stage: Stage of the backbone; default: the last that the method uses.
        label: Only prototypes of this label.
        count: Maximum number.
        seed: Seed of the draw.

    Raises:
        IntclipError: The stage is not used, or the label has no prototypes.
    """
    stage = method.options.stages[-1] if stage is None else stage
    if stage not in method.stages:
        raise IntclipError(f"this model uses stages {', '.join(map(str, method.stages))}, not {stage}")
    owner = method.stages[stage].pool.owner.cpu().numpy()
    known = np.arange(len(owner))
    if label is not None:
        known = known[owner == method.taxonomy.index(label)]
        if not len(known):
            raise IntclipError(f"stage {stage} has no prototypes of {label!r}; omit the label")
    picked = np.random.default_rng(seed).permutation(known)[:count]
    return {stage: sorted(picked.tolist())}


def draw_prototypes(method: MCCL, prototypes: Sequence[Prototype], path: Path) -> None:
    """Draw one row per prototype with its nearest patches, as PNG or JPEG.

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
        made = f"for {prototype.label}" if prototype.label else "random initialisation"
        text = (
            f"stage {prototype.stage}, prototype {prototype.index}, {made}, nearest to {prototype.usage:.1%} of patches"
        )
        draw.text((gap, top), drawable(text), fill=INK, font=font(13, drawable(text)))
        for column, patch in enumerate(prototype.patches):
            canvas.paste(_cut(method, patch), (gap + column * (TILE + gap), top + caption))
    save_picture(canvas, path)


def _cut(method: MCCL, patch: Patch) -> Image.Image:
    """Crop a patch with its surroundings, shifted inside the photo at the edges."""
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
