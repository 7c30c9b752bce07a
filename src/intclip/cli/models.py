"""`intclip models`."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intclip.cli.options import AsJson

if TYPE_CHECKING:
    from intclip.backbones.hub import HubFile

_LITE = {
    "lite": "at once and offline, any labels; a small model's guesses",
    "lite2": "as lite with a larger image tower: better to train on, no better without training",
    "lite+lite2": "both towers: the best of the embedded ones to train on (recipe best), slower",
}
_CLIP = {
    "ViT-B/32": "any labels; trained on 400 million captioned photos, the smallest of these",
    "RN101": "any labels; the backbone of the IntCLIP paper",
    "ViT-L/14": "any labels; the most accurate of these on ImageNet; slow on a CPU",
}


@dataclass(frozen=True)
class Found:
    """A model that `load` takes.

    Attributes:
        model: What to write behind --model.
        where: "embedded", "missing" (its package is not installed), "cache" or "hub".
        megabytes: Size of its weights; of one on the hub about what is downloaded.
        use: What it is good for.
    """

    model: str
    where: str
    megabytes: int
    use: str


def models(as_json: AsJson = False) -> None:
    """List the models that can be had: embedded, downloaded before, or on the hub, with sizes and uses.

    Nothing is downloaded. Models of your own (`intclip train`, `intclip fit`) are folders; give their path.

    intclip models

    intclip predict photo.jpg --model zero-shot:ViT-B/32
    """
    found = find_models()
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=1))
        return
    from intclip.cli.common import print_table

    rows = [(one.model, one.where, f"{one.megabytes:,}", one.use) for one in found]
    print_table(("model", "where", "MB", "good for"), rows)
    if any(one.where == "missing" for one in found):
        print("missing: pip install 'intclip[lite2]'")


def find_models() -> list[Found]:
    """All models that `load` takes by name; it looks at files alone."""
    from intclip.backbones.hub_files import HUB_FILES, PUBLISHED
    from intclip.backbones.lite_towers import LITE_BACKBONES, LITE_TOWERS, TEXT_PACKAGE, package_folder
    from intclip.errors import CheckpointError
    from intclip.inference.loading import BUNDLES, SHORT_NAMES

    rows = []
    for name, embedded in LITE_BACKBONES.items():
        try:
            towers = [package_folder(LITE_TOWERS[tower].package) / LITE_TOWERS[tower].file for tower in embedded.towers]
            text = package_folder(TEXT_PACKAGE) / "model" / "model.safetensors"
            rows.append(Found(name, "embedded", _megabytes([*towers, text, embedded.projection]), _LITE[name]))
        except CheckpointError:
            rows.append(Found(name, "missing", 0, _LITE[name]))
    for name, folder in SHORT_NAMES.items():
        use = "the intents of Flickr8k's captions: 16 labels, trained on lite"
        rows.append(Found(name, "embedded", _megabytes((BUNDLES / folder).iterdir()), use))
    for name, file in HUB_FILES.items():
        path = _local(name, file)
        size = round(4 * PUBLISHED[name].parameters) if path is None else _megabytes([path])
        use = _CLIP.get(name, "any labels")
        about = PUBLISHED[name]
        use = f"{use}; {about.size} pixels, {about.languages}, {about.licence}"
        rows.append(Found(f"zero-shot:{name}", "hub" if path is None else "cache", size, use))
    return rows


def _local(name: str, file: "HubFile") -> Path | None:
    """Where the weights of a CLIP lie already: in the folder of weights, or in the hub's cache."""
    from intclip.backbones.hub import cached
    from intclip.backbones.sources import WEIGHTS_VARIABLE
    from intclip.errors import MissingExtraError

    if folder := os.environ.get(WEIGHTS_VARIABLE):
        stem = name.replace("/", "-").replace("@", "-")
        if own := next((path for path in sorted(Path(folder).glob(f"{stem}.*")) if path.is_file()), None):
            return own
    try:
        return cached(file)
    except MissingExtraError:
        return None


def _megabytes(files: Iterable[Path]) -> int:
    return round(sum(file.stat().st_size for file in files) / 1e6)
