"""`intclip models`."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from intclip.cli.options import AsJson

if TYPE_CHECKING:
    from intclip.backbones.hub import HubFile

_LITE = {
    "lite": "offline, any labels; small, less accurate",
    "lite2": "like lite with a larger image tower: better for training, no better without it",
    "lite+lite2": "both towers: the best embedded one for training (recipe best), slower",
}
_CLIP = {
    "ViT-B/32": "any labels; trained on 400 million captioned photos, the smallest of these",
    "RN101": "any labels; the backbone of the IntCLIP paper",
    "ViT-L/14": "any labels; the most accurate of these on ImageNet; slow on a CPU",
}


@dataclass(frozen=True)
class ListedModel:
    """A model that `load` accepts.

    Attributes:
        model: Value for --model.
        where: "embedded", "missing" (its package is not installed), "cache" or "hub".
        megabytes: Size of its weights; on the hub, approximate download size.
        use: Purpose.
    """

    model: str
    where: str
    megabytes: int
    use: str


def models(as_json: AsJson = False) -> None:
    """List available models with their sizes and uses.

    Models are embedded, downloaded, or on the hub. Downloads nothing. Your own models (`intclip train`, `intclip
    fit`) are folders; pass their path. Your own weights of any listed family: `--model zero-shot:CLIP --checkpoint
    FOLDER`.

    intclip models

    intclip predict photo.jpg --model zero-shot:ViT-B/32
    """
    from intclip.cli.common import print_json, print_table

    found = find_models()
    if as_json:
        print_json([asdict(one) for one in found])
        return
    rows = [(one.model, one.where, f"{one.megabytes:,}", one.use) for one in found]
    print_table(("model", "where", "MB", "good for"), rows)
    if any(one.where == "missing" for one in found):
        print("missing: pip install 'intclip[lite2]'")


def find_models() -> list[ListedModel]:
    """List all models that `load` accepts by name, by checking files only."""
    from intclip.backbones.hub_files import HUB_FILES, PUBLISHED
    from intclip.backbones.lite_towers import LITE_BACKBONES, LITE_TOWERS, TEXT_PACKAGE, package_folder
    from intclip.errors import CheckpointError
    from intclip.inference.loading import BUNDLES, SHORT_NAMES

    rows = []
    for name, embedded in LITE_BACKBONES.items():
        try:
            towers = [package_folder(LITE_TOWERS[tower].package) / LITE_TOWERS[tower].file for tower in embedded.towers]
            text = package_folder(TEXT_PACKAGE) / "model" / "model.safetensors"
            rows.append(ListedModel(name, "embedded", _megabytes([*towers, text, embedded.projection]), _LITE[name]))
        except CheckpointError:
            rows.append(ListedModel(name, "missing", 0, _LITE[name]))
    for name, folder in SHORT_NAMES.items():
        use = "16 intents from Flickr8k's captions, trained on lite"
        rows.append(ListedModel(name, "embedded", _megabytes((BUNDLES / folder).iterdir()), use))
    for name, file in HUB_FILES.items():
        path = _local(name, file)
        size = round(4 * PUBLISHED[name].parameters) if path is None else _megabytes([path])
        use = _CLIP.get(name, "any labels")
        about = PUBLISHED[name]
        use = f"{use}; {about.size} pixels, {about.languages}, {about.licence}"
        rows.append(ListedModel(f"zero-shot:{name}", "hub" if path is None else "cache", size, use))
    return rows


def _local(name: str, file: "HubFile") -> Path | None:
    """Find a CLIP's local weights, in the weights folder or the hub's cache."""
    from intclip.backbones.hub import cached
    from intclip.backbones.sources import local_weights
    from intclip.backbones.weight_files import find_weights
    from intclip.errors import CheckpointError, MissingExtraError

    if own := local_weights(name):
        with suppress(CheckpointError):
            return find_weights(own)
    try:
        return cached(file)
    except MissingExtraError:
        return None


def _megabytes(files: Iterable[Path]) -> int:
    return round(sum(file.stat().st_size for file in files) / 1e6)
