"""Which files a backbone's numbers come from, without reading them: no torch is needed here, so this loads fast."""

import json
import os
from pathlib import Path

from intclip.backbones.lite_towers import CLASS_NAMES, LITE_BACKBONES, LITE_TOWERS, TEXT_PACKAGE, package_folder
from intclip.errors import CheckpointError

WEIGHTS_VARIABLE = "INTCLIP_WEIGHTS"
"""Environment variable: a folder of weight files such as `RN101.pt` or `ViT-B-32.safetensors`."""
HUB_PREFIX = "hf:"
RANDOM = "@random"
ANY_SIZE = "CLIP"
"""Name of a CLIP, or of another family, of any size; it needs a checkpoint."""

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names to look for in a folder. open_clip's first: a repository may hold an image tower alone under the other."""
INDEX = ".index.json"
"""Ending of the file that lists the parts of weights that are stored in several."""
OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SIDECARS = (OPEN_CLIP, HUGGING_FACE, *PROCESSORS, "tokenizer.json", "tokenizer_config.json")
"""Files beside the weights that are read where they are there."""


def find_weights(path: Path) -> Path:
    """The weight file at a path: the file itself, or the one in a folder that bears a usual name.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"no weights in {path}; expected one of: {', '.join(WEIGHT_FILES)}")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    return path


def weight_parts(path: Path) -> list[Path]:
    """The files that hold the weights: this one, or the parts that an index lists.

    Raises:
        CheckpointError: The index is damaged, or names a file elsewhere.
    """
    if not path.name.endswith(INDEX):
        return [path]
    names = sorted(set(read_index(path).values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{path} names the part {name!r}, which is not a file beside it; fetch it again")
    return [path.with_name(name) for name in names]


def read_index(path: Path) -> dict[str, str]:
    """Tensor name to the part that holds it.

    Raises:
        CheckpointError: The index is damaged, or empty.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        whole = isinstance(found, dict) and found and all(isinstance(part, str) for part in found.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of weights, or a damaged one; fetch it again") from error
    if not whole:
        raise CheckpointError(f"{path} is not an index of weights, or a damaged one; fetch it again")
    return dict(found)


def local_weights(name: str) -> Path | None:
    """Where a named backbone's weights lie in the folder that INTCLIP_WEIGHTS names; None where they do not.

    Raises:
        CheckpointError: The variable names no folder.
    """
    folder = os.environ.get(WEIGHTS_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise CheckpointError(f"{WEIGHTS_VARIABLE} names {folder}, which is not a folder; correct or unset it")
    stem = name.replace("/", "-").replace("@", "-")
    candidates = (Path(folder, f"{stem}{suffix}") for suffix in (".safetensors", ".pt", ".bin", ""))
    return next((path for path in candidates if path.exists()), None)


def source_files(name: str, checkpoint: str | os.PathLike[str] | None) -> list[Path]:
    """All files on disk that a backbone's numbers come from: weights and what lies beside them.

    Weights on the hub that are not in its cache yet are not among them.

    Args:
        name: As `load_backbone` takes it.
        checkpoint: As `load_backbone` takes it.

    Raises:
        CheckpointError: There are no weights where they are said to be.
    """
    if checkpoint is None and (embedded := LITE_BACKBONES.get(name)):
        images = [package_folder(LITE_TOWERS[tower].package) / LITE_TOWERS[tower].file for tower in embedded.towers]
        text = package_folder(TEXT_PACKAGE) / "model"
        return [*images, text / "model.safetensors", text / "tokenizer.json", embedded.projection, CLASS_NAMES]
    spec = name if checkpoint is None else os.fspath(checkpoint)
    if spec.startswith(HUB_PREFIX):
        return _beside(_in_cache(spec))
    if checkpoint is not None:
        return _beside(find_weights(Path(spec).expanduser()))
    path = local_weights(name)
    return _beside(None if path is None else find_weights(path))


def _in_cache(spec: str) -> Path | None:
    from intclip.backbones import hub

    return hub.cached_repository(spec)


def _beside(weights: Path | None) -> list[Path]:
    if weights is None:
        return []
    beside = (weights.with_name(name) for name in SIDECARS)
    return [weights, *(part for part in weight_parts(weights) if part != weights), *(f for f in beside if f.is_file())]
