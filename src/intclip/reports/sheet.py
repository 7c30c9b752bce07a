"""Evidence as one picture: one map or two prompts' side by side, what it shows, a legend, nearest known photos."""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from intclip.data.images import read_image
from intclip.errors import ImageError
from intclip.evidence.evidence import LEGEND, Evidence, Heat, colors, overlay, upsample
from intclip.evidence.pictures import INK, PAPER, QUIET, font, shorten

NARROWEST = 360
"""Width that the legend needs, in pixels: a smaller photo is centred over it."""
_GAP, _LINE, _BAR, _TILE = 10, 22, 12, 96


def evidence_sheet(photo: Image.Image, evidence: Evidence, branch: str = "fused") -> Image.Image:
    """The photo with a map of its evidence, above a legend and, where there are any, the nearest known photos.

    Args:
        photo: Upright, RGB.
        evidence: Of this photo.
        branch: "fused", "sight" or "semantic".
    """
    what = "" if evidence.kind == "regions" else f", {evidence.kind}"
    return _sheet(overlay(photo, getattr(evidence, branch), evidence.box), evidence, f"{branch}{what}")


def prompts_sheet(photo: Image.Image, positive: Evidence, negative: Evidence, branch: str = "fused") -> Image.Image:
    """As `evidence_sheet`, of a label's two prompts: each region's likeness to the positive and to the negative one.

    Args:
        photo: Upright, RGB.
        positive: Of kind "positive".
        negative: Of kind "negative", of the same photo and label.
        branch: "fused", "sight" or "semantic".
    """
    pair = prompts_overlay(photo, positive, negative, branch)
    return _sheet(pair, positive, f"{branch}, prompts", ("like the positive prompt", "like the negative prompt"))


def prompts_overlay(photo: Image.Image, positive: Evidence, negative: Evidence, branch: str = "fused") -> Image.Image:
    """The photo twice, under the map of the positive prompt and under that of the negative one; see `prompts_sheet`.

    Both maps have one range, from the least to the most of the two: the same colour is the same likeness, and the
    prompt under which a region is brighter is the one it speaks for.
    """
    halves = [overlay(photo, heat, positive.box) for heat in _common_range(positive, negative, branch)]
    pair = Image.new("RGB", (2 * photo.width + _GAP, photo.height), PAPER)
    for column, half in enumerate(halves):
        pair.paste(half, (column * (photo.width + _GAP), 0))
    return pair


def _common_range(positive: Evidence, negative: Evidence, branch: str) -> list[Heat]:
    """Two maps (S, S) in [0, 1], scaled by one range."""
    regions = [each.regions.get(branch, next(iter(each.regions.values()))) for each in (positive, negative)]
    heats = [upsample(values, len(positive.fused)) for values in regions]
    low, high = min(heat.min() for heat in heats), max(heat.max() for heat in heats)
    return [((heat - low) / max(high - low, 1e-12)).astype(np.float32) for heat in heats]


def _sheet(drawn: Image.Image, evidence: Evidence, what: str, captions: tuple[str, ...] = ()) -> Image.Image:
    """The drawn maps above all that is said of them; captions belong to as many maps side by side."""
    width = max(drawn.width, NARROWEST)
    rows = (3 if captions else 2) * _LINE + _BAR + 2 * _GAP
    strip = _TILE + 2 * _LINE + _GAP if evidence.neighbours else 0
    sheet = Image.new("RGB", (width, drawn.height + rows + strip), PAPER)
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    top = drawn.height + _GAP // 2
    for column, caption in enumerate(captions):
        share = width // len(captions)
        draw.text((_GAP + column * share, top), shorten(caption, share - 2 * _GAP, 13), fill=QUIET, font=font(13))
    top += _LINE if captions else 0
    title = f"{evidence.label}  {evidence.probability:.2f}   {what}"
    draw.text((_GAP, top), shorten(title, width - 2 * _GAP), fill=INK, font=font(15))
    top += _LINE
    bar = np.broadcast_to(colors(np.linspace(0, 1, width - 2 * _GAP)), (_BAR, width - 2 * _GAP, 3))
    sheet.paste(Image.fromarray(bar.round().astype(np.uint8)), (_GAP, top))
    top += _BAR + 2
    draw.text((_GAP, top), LEGEND[0], fill=QUIET, font=font(13))
    draw.text((width - _GAP, top), LEGEND[1], fill=QUIET, font=font(13), anchor="ra")
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
