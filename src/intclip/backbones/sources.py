"""Find the files of a backbone without reading them. Does not import torch, so it loads fast."""

import os
from pathlib import Path

from intclip.backbones import hub
from intclip.backbones.lite_towers import CLASS_NAMES, LITE_BACKBONES, LITE_TOWERS, TEXT_PACKAGE, package_folder
from intclip.backbones.weight_files import SIDECARS, find_weights, weight_parts
from intclip.errors import CheckpointError
from intclip.files import digest, sha256_file

WEIGHTS_VARIABLE = "INTCLIP_WEIGHTS"
"""Environment variable: a folder of weight files such as `RN101.pt` or `ViT-B-32.safetensors`."""
RANDOM = "@random"
ANY_SIZE = "CLIP"
"""Name for a CLIP model (or another family's) of any size; it requires a checkpoint."""


def local_weights(name: str) -> Path | None:
    """Return the path of a named backbone's weights in the folder INTCLIP_WEIGHTS, or None.

    Raises:
        CheckpointError: The variable's value is not a folder.
    """
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise CheckpointError(f"{WEIGHTS_VARIABLE} is {folder}, which is not a folder; correct or unset it")
    stem = name.replace("/", "-").replace("@", "-")
    candidates = (Path(folder, f"{stem}{suffix}") for suffix in (".safetensors", ".pt", ".bin", ""))
    return next((path for path in candidates if path.exists()), None)


def source_files(name: str, checkpoint: str | os.PathLike[str] | None) -> list[Path]:
    """Return all files of a backbone on disk: weights and the files beside them.

    Hub weights that are not cached yet are not included.

    Args:
        name: As `load_backbone` takes it.
        checkpoint: As `load_backbone` takes it.

    Raises:
        CheckpointError: The given weights do not exist.
    """
    if checkpoint is None and (embedded := LITE_BACKBONES.get(name)):
        images = [package_folder(LITE_TOWERS[tower].package) / LITE_TOWERS[tower].file for tower in embedded.towers]
        text = package_folder(TEXT_PACKAGE) / "model"
        return [*images, text / "model.safetensors", text / "tokenizer.json", embedded.projection, CLASS_NAMES]
    spec = name if checkpoint is None else os.fspath(checkpoint)
    if spec.startswith(hub.HUB_PREFIX):
        return _beside(hub.cached_repository(spec))
    if checkpoint is not None:
        return _beside(find_weights(Path(spec).expanduser()))
    path = local_weights(name)
    return _beside(None if path is None else find_weights(path))


def embedded_identity(name: str) -> str:
    """Return the SHA-256 of an embedded backbone's weight files, which is its `Backbone.identity`."""
    return digest([name, [sha256_file(path) for path in source_files(name, None)]])


def _beside(weights: Path | None) -> list[Path]:
    if weights is None:
        return []
    beside = (weights.with_name(name) for name in SIDECARS)
    return [weights, *(part for part in weight_parts(weights) if part != weights), *(f for f in beside if f.is_file())]
