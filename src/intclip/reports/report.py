"""A report on photos or posts: one offline HTML file with intents by level, and evidence on demand.

The page has a thumbnail per photo, the probabilities, and the region logits of its
strongest labels as bytes (49 for a 7 × 7 map), which the browser turns into an overlay on demand.
"""

import json
import os
from pathlib import Path

import numpy as np

from intclip.errors import ImageError
from intclip.evidence.heat import LEGEND, colors
from intclip.files import write_text
from intclip.inference.pipeline import Images, Texts, pair_posts
from intclip.inference.predictor import Predictor
from intclip.reports.entries import PhotoEntry, make_entries, thresholds_per_mille

TEMPLATES = Path(__file__).parent / "templates"


def write_folder_report(
    images: Images | None,
    predictor: Predictor,
    path: str | os.PathLike[str],
    *,
    texts: Texts | None = None,
    title: str = "Why these photos were taken",
    batch_size: int = 32,
) -> list[ImageError]:
    """Score photos or posts, and write their report.

    Args:
        images: As for `Predictor.predict`.
        predictor: The model.
        path: The HTML file to write.
        texts: The posts' texts; as for `Predictor.predict`.
        title: Heading of the page.
        batch_size: Photos scored at once.

    Returns:
        One error per unreadable post; the page lists them too.

    Raises:
        ImageError: There is no readable photo at all.
        IntclipError: There are texts, but the model does not use text.
        StorageError: The file cannot be written.
    """
    if texts is not None:
        predictor.check_words()
    entries, failures = make_entries(pair_posts(images, texts), predictor, batch_size=batch_size)
    if not entries:
        raise ImageError(f"no photo could be read; the first one: {failures[0]}" if failures else "no photos")
    write_text(path, render(title, predictor, entries, failures))
    return failures


def render(title: str, predictor: Predictor, entries: list[PhotoEntry], failures: list[ImageError]) -> str:
    """Return the page as HTML."""
    from jinja2 import Environment, FileSystemLoader

    taxonomy = predictor.taxonomy
    levels = [
        {"name": level, "labels": list(names), "members": _members(predictor, position)}
        for position, (level, names) in enumerate(taxonomy.levels.items())
    ]
    data = {
        "model": predictor.card.model,
        "note": predictor.note or "",
        "taxonomy": taxonomy.name,
        "exclusive": taxonomy.exclusive,
        "levels": levels,
        "thresholds": thresholds_per_mille(predictor.thresholds),
        "branches": list(predictor.card.maps),
        "palette": colors(np.linspace(0, 1, 256)).round().astype(int).tolist(),
        "photos": entries,
        "failures": [str(failure) for failure in failures],
    }
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    return environment.get_template("report.html").render(
        title=title,
        legend=LEGEND,
        style=_read("look.css") + _read("report.css"),
        script=_read("overlay.js") + _read("report.js"),
        # A "<" in a file name or post could end the script element or open another.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _members(predictor: Predictor, level: int) -> list[list[int]]:
    """Return the class indices below every label of a level."""
    taxonomy = predictor.taxonomy
    names = list(taxonomy.levels.values())[level]
    if level == 0:
        return [[index] for index in range(len(names))]
    above = [taxonomy.parents[name][level - 1] for name in taxonomy.names]
    return [[index for index, parent in enumerate(above) if parent == name] for name in names]
