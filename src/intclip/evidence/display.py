"""Evidence as HTML in notebooks and as plots."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from intclip.data.images import data_url, read_image
from intclip.errors import ImageError, IntclipError
from intclip.evidence.heat import LEGEND, colors, overlay
from intclip.extras import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from intclip.data.images import ImageInput
    from intclip.evidence.evidence import Evidence

SIDE = 480
"""Longer side of a picture in a notebook, in pixels."""


def evidence_html(evidence: "Evidence") -> str:
    """Render the photo, the photo under the map, and a legend; only the map if there is no photo file."""
    photo = source_photo(evidence.source)
    pictures = [_map(evidence, "fused")] if photo is None else [photo, _drawn(photo, evidence, "fused")]
    shown = "".join(
        f'<img src="{data_url(picture, SIDE, quality=85)}" alt="" style="max-width:48%;margin-right:1%">'
        for picture in pictures
    )
    return (
        f"<div><p><b>{escape(evidence.label)}</b> {evidence.probability:.2f}</p>{shown}"
        f'<p style="font-size:85%">{LEGEND[0]} <img src="{_legend()}" alt="" style="vertical-align:middle;width:96px;'
        f'height:9px;display:inline"> {LEGEND[1]}</p></div>'
    )


def plot_evidence(
    evidence: "Evidence", photo: "ImageInput | None" = None, *, branch: str = "fused", ax: "Axes | None" = None
) -> "Axes":
    """See `Evidence.plot`."""
    if branch not in ("fused", "sight", "semantic"):
        raise IntclipError(f"branch {branch!r} is not a map; choose fused, sight or semantic")
    read = source_photo(evidence.source) if photo is None else read_image(photo)
    axes: Axes = require("matplotlib.pyplot", "notebook").subplots()[1] if ax is None else ax
    axes.imshow(_map(evidence, branch) if read is None else _drawn(read, evidence, branch))
    axes.set_title(f"{evidence.label} {evidence.probability:.2f} ({branch})", parse_math=False)
    axes.set_axis_off()
    return axes


def source_photo(source: str, *, min_side: int | None = None) -> Image.Image | None:
    """Read the photo of a prediction or evidence again; None if its source is not a readable file."""
    try:
        return read_image(source, min_side=min_side)
    except (ImageError, OSError, ValueError):
        return None


def _drawn(photo: Image.Image, evidence: "Evidence", branch: str) -> Image.Image:
    return overlay(photo, getattr(evidence, branch), evidence.box)


def _map(evidence: "Evidence", branch: str) -> Image.Image:
    return Image.fromarray(colors(getattr(evidence, branch)).round().astype(np.uint8))


def _legend() -> str:
    ramp = np.broadcast_to(colors(np.linspace(0, 1, 96)), (9, 96, 3)).round().astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(ramp).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
