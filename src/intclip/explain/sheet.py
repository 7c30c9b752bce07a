"""Evidence as one picture: the overlay, what it shows, a legend, and the nearest known photos."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from intclip.data.images import read_image
from intclip.errors import ImageError
from intclip.explain.evidence import Evidence, colors, overlay
from intclip.explain.pictures import INK, PAPER, QUIET, font, shorten

NARROWEST = 360
"""Width that the legend needs, in pixels: a smaller photo is centred over it."""
_GAP, _LINE, _BAR, _TILE = 10, 22, 12, 96
_ENDS = {
    "regions": ("against", "for"),
    "positive": ("unlike the positive prompt", "like it"),
    "negative": ("unlike the negative prompt", "like it"),
    "gradcam": ("none", "most"),
    "rollout": ("least", "most"),
}


def evidence_sheet(photo: Image.Image, evidence: Evidence, branch: str = "fused") -> Image.Image:
    """The photo with a map of its evidence, above a legend and, where there are any, the nearest known photos.

    Args:
        photo: Upright, RGB.
        evidence: Of this photo.
        branch: "fused", "sight" or "semantic".
    """
    drawn = overlay(photo, getattr(evidence, branch), evidence.box)
    width = max(drawn.width, NARROWEST)
    rows = 2 * _LINE + _BAR + 2 * _GAP
    strip = _TILE + 2 * _LINE + _GAP if evidence.neighbours else 0
    sheet = Image.new("RGB", (width, drawn.height + rows + strip), PAPER)
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = drawn.height + _GAP // 2
    what = "" if evidence.kind == "regions" else f", {evidence.kind}"
    title = f"{evidence.label}  {evidence.probability:.2f}   {branch}{what}"
    draw.text((_GAP, top), shorten(title, width - 2 * _GAP), fill=INK, font=font(15))
    top += _LINE
    bar = np.broadcast_to(colors(np.linspace(0, 1, width - 2 * _GAP)), (_BAR, width - 2 * _GAP, 3))
    sheet.paste(Image.fromarray(bar.round().astype(np.uint8)), (_GAP, top))
    top += _BAR + 2
    low, high = _ENDS[evidence.kind]
    draw.text((_GAP, top), low, fill=QUIET, font=font(13))
    draw.text((width - _GAP, top), high, fill=QUIET, font=font(13), anchor="ra")
    if evidence.neighbours:
        _draw_neighbours(sheet, draw, evidence, top + _LINE)
    return sheet


def _draw_neighbours(sheet: Image.Image, draw: ImageDraw.ImageDraw, evidence: Evidence, top: int) -> None:
    """Tiles with their cosines, as many as the width holds."""
    draw.text((_GAP, top), "nearest known photos, by cosine", fill=QUIET, font=font(13))
    for column, neighbour in enumerate(evidence.neighbours):
        left = _GAP + column * (_TILE + _GAP)
        if left + _TILE > sheet.width:
            return
        try:
            tile = ImageOps.fit(read_image(neighbour.path, min_side=_TILE), (_TILE, _TILE))
        except ImageError:  # indexed once, and gone since
            tile = Image.new("RGB", (_TILE, _TILE), QUIET)
        sheet.paste(tile, (left, top + _LINE))
        draw.text((left, top + _LINE + _TILE + 2), f"{neighbour.cosine:.2f}", fill=INK, font=font(13))
