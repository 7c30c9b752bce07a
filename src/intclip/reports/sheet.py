"""Evidence as one picture: one map or two prompts side by side, caption, legend, nearest photos."""

import math

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from intclip.data.images import read_image
from intclip.errors import ImageError
from intclip.evidence.evidence import Evidence
from intclip.evidence.heat import LEGEND, Heat, colors, overlay, upsample
from intclip.evidence.pictures import INK, PAPER, QUIET, font, shorten

NARROWEST = 360
"""Width of the legend in pixels; a smaller photo is centred above it."""
_GAP, _LINE, _BAR, _TILE, _TEXT, _SMALL = 10, 22, 12, 96, 15, 13
_ORDINARY = 800
"""Photo side in pixels for which these lengths are right; they scale up with larger photos."""


def evidence_sheet(photo: Image.Image, evidence: Evidence, branch: str = "fused") -> Image.Image:
    """Draw the photo with its evidence map, a legend and any nearest photos.

    Args:
        photo: Upright, RGB.
        evidence: The evidence.
        branch: "fused", "sight" or "semantic".
    """
    what = "" if evidence.kind == "regions" else f", {evidence.kind}"
    return _sheet(overlay(photo, getattr(evidence, branch), evidence.box), evidence, f"{branch}{what}")


def prompts_sheet(photo: Image.Image, positive: Evidence, negative: Evidence, branch: str = "fused") -> Image.Image:
    """Like `evidence_sheet`, for the similarity of each region to a label's positive and negative prompt.

    Args:
        photo: Upright, RGB.
        positive: Of kind "positive".
        negative: Of kind "negative", of the same photo and label.
        branch: "fused", "sight" or "semantic".
    """
    pair = prompts_overlay(photo, positive, negative, branch)
    return _sheet(pair, positive, f"{branch}, prompts", ("like the positive prompt", "like the negative prompt"))


def prompts_overlay(photo: Image.Image, positive: Evidence, negative: Evidence, branch: str = "fused") -> Image.Image:
    """Draw the photo twice, with the maps of the positive and the negative prompt; see `prompts_sheet`.

    Both maps share one scale: equal colours mean equal similarity, and a
    region supports the prompt under which it is brighter.
    """
    halves = [overlay(photo, heat, positive.box) for heat in _common_range(positive, negative, branch)]
    pair = Image.new("RGB", (2 * photo.width + _GAP, photo.height), PAPER)
    for column, half in enumerate(halves):
        pair.paste(half, (column * (photo.width + _GAP), 0))
    return pair


def _common_range(positive: Evidence, negative: Evidence, branch: str) -> list[Heat]:
    """Scale two maps (S, S) jointly to [0, 1]."""
    regions = [each.regions.get(branch, next(iter(each.regions.values()))) for each in (positive, negative)]
    heats = [upsample(values, len(positive.fused)) for values in regions]
    low, high = min(heat.min() for heat in heats), max(heat.max() for heat in heats)
    return [((heat - low) / max(high - low, 1e-12)).astype(np.float32) for heat in heats]


def _sheet(drawn: Image.Image, evidence: Evidence, what: str, captions: tuple[str, ...] = ()) -> Image.Image:
    """Stack the maps above captions and legend; one caption per map."""
    scale = _scale(drawn.size)
    gap, line, bar, tile = (round(scale * length) for length in (_GAP, _LINE, _BAR, _TILE))
    text, small = round(scale * _TEXT), round(scale * _SMALL)
    width = max(drawn.width, round(scale * NARROWEST))
    rows = (3 if captions else 2) * line + bar + 2 * gap
    strip = tile + 2 * line + gap if evidence.neighbours else 0
    sheet = Image.new("RGB", (width, drawn.height + rows + strip), PAPER)
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = drawn.height + gap // 2
    for column, caption in enumerate(captions):
        share = width // len(captions)
        draw.text((gap + column * share, top), shorten(caption, share - 2 * gap, small), fill=QUIET, font=font(small))
    top += line if captions else 0
    title = shorten(f"{evidence.label}  {evidence.probability:.2f}   {what}", width - 2 * gap, text)
    draw.text((gap, top), title, fill=INK, font=font(text, title))
    top += line
    colours = np.broadcast_to(colors(np.linspace(0, 1, width - 2 * gap)), (bar, width - 2 * gap, 3))
    sheet.paste(Image.fromarray(colours.round().astype(np.uint8)), (gap, top))
    top += bar + 2
    draw.text((gap, top), LEGEND[0], fill=QUIET, font=font(small))
    draw.text((width - gap, top), LEGEND[1], fill=QUIET, font=font(small), anchor="ra")
    if evidence.neighbours:
        _draw_neighbours(sheet, draw, evidence, top + line, scale)
    return sheet


def _scale(size: tuple[int, int]) -> float:
    """Return the text scale for a photo of this size."""
    return max(1.0, math.sqrt(size[0] * size[1]) / _ORDINARY)


def _draw_neighbours(sheet: Image.Image, draw: ImageDraw.ImageDraw, evidence: Evidence, top: int, scale: float) -> None:
    """Draw tiles with their cosines, as many as fit."""
    gap, line, side, small = (round(scale * length) for length in (_GAP, _LINE, _TILE, _SMALL))
    draw.text((gap, top), "nearest known photos, by cosine", fill=QUIET, font=font(small))
    for column, neighbour in enumerate(evidence.neighbours):
        left = gap + column * (side + gap)
        if left + side > sheet.width:
            return
        try:
            tile = ImageOps.fit(read_image(neighbour.path, min_side=side), (side, side))
        except ImageError:  # deleted since indexing
            tile = Image.new("RGB", (side, side), QUIET)
        sheet.paste(tile, (left, top + line))
        draw.text((left, top + line + side + 2), f"{neighbour.cosine:.2f}", fill=INK, font=font(small))
