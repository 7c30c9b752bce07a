"""Attention of MCCL's labels in a photo, and the overlap of two of them, as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from intclip.data.images import read_image
from intclip.evidence.evidence import make_evidence
from intclip.evidence.heat import overlay
from intclip.evidence.pictures import INK, PAPER, QUIET, font, save_picture, shorten
from intclip.methods.mccl.model import MCCL


@dataclass(frozen=True)
class LabelAttention:
    """Attention of a label in a photo.

    Attributes:
        label: Its name.
        probability: Probability of the label in this photo.
        attention: Shares of its attention over the regions (H, W), summing to 1.
    """

    label: str
    probability: float
    attention: npt.NDArray[np.float32]


@torch.no_grad()
def label_attention(method: MCCL, photo: Path) -> list[LabelAttention]:
    """Compute the attention of every label in a photo.

    Raises:
        ImageError: It cannot be read.
    """
    method.eval()
    pixels = method.backbone.pixels([read_image(photo)]).to(method.adjacency.device)
    output = method(method.backbone.features(pixels, method.needs), maps=True)
    logits = output.logits[0] / method.temperature
    chances = (logits.softmax(dim=0) if method.taxonomy.exclusive else logits.sigmoid()).tolist()
    # The map is attention relative to uniform attention, minus 1.
    shares = (output.maps["fused"][0] + 1).cpu().numpy()
    shares /= shares.sum(axis=(1, 2), keepdims=True)
    return [LabelAttention(*item) for item in zip(method.taxonomy.names, chances, shares, strict=True)]


def overlap(first: LabelAttention, second: LabelAttention) -> float:
    """Return the overlap of two labels' attention: Σ min(a, b), 1 for the same regions and 0 for disjoint ones."""
    return float(np.minimum(first.attention, second.attention).sum())


def contrasting(attentions: Sequence[LabelAttention], top: int = 5) -> list[LabelAttention]:
    """Return the two probable labels whose attention overlaps least, the more probable first."""
    likely = sorted(attentions, key=lambda item: -item.probability)[: max(top, 2)]
    pairs = [(overlap(a, b), i, j) for i, a in enumerate(likely) for j, b in enumerate(likely) if i < j]
    if not pairs:
        return likely
    _, i, j = min(pairs)
    return [likely[i], likely[j]]


def draw_attention(
    method: MCCL, photo: Path, attentions: Sequence[LabelAttention], path: Path, *, height: int = 360
) -> None:
    """Draw the photo, and the photo with the attention of labels, as PNG or JPEG.

    Raises:
        ImageError: The photo cannot be read.
        StorageError: The picture cannot be written.
    """
    image = read_image(photo)
    preprocess = method.backbone.preprocess
    tiles = [("photo", image)]
    for item in attentions:
        evidence = make_evidence(
            item.label,
            item.probability,
            {"fused": item.attention},
            size=preprocess.size,
            box=preprocess.source_box(image.size),
            source=str(photo),
        )
        tiles.append((f"{item.label}  {item.probability:.2f}", overlay(image, evidence.fused, evidence.box)))
    width, caption, gap = max(round(image.width * height / image.height), 1), 24, 8
    canvas = Image.new("RGB", (gap + len(tiles) * (width + gap), height + caption + 2 * gap), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, (text, tile) in enumerate(tiles):
        left = gap + column * (width + gap)
        shown = shorten(text, width)
        draw.text((left, gap), shown, fill=INK if column else QUIET, font=font(15, shown))
        canvas.paste(tile.resize((width, height), Image.Resampling.BICUBIC), (left, gap + caption))
    save_picture(canvas, path)
