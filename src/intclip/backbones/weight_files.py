"""Weight files in a folder: usual names, accompanying files, and weights in several parts."""

import json
from pathlib import Path

from intclip.errors import CheckpointError

WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names to look for in a folder. open_clip's come first: the other name may hold only an image tower."""
INDEX = ".index.json"
"""Suffix of the file that lists the parts of weights stored in several files."""
OPEN_CLIP, HUGGING_FACE = "open_clip_config.json", "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
SIDECARS = (OPEN_CLIP, HUGGING_FACE, *PROCESSORS, "tokenizer.json", "tokenizer_config.json")
"""Optional files beside the weights."""


def find_weights(path: Path) -> Path:
    """Return the weight file at a path: the file itself, or the one in a folder with a usual name.

    Raises:
        CheckpointError: There is no weight file.
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
    """Return the files of the weights: this one, or the parts in an index.

    Raises:
        CheckpointError: The index is damaged, or names a file outside its folder.
    """
    if not path.name.endswith(INDEX):
        return [path]
    names = sorted(set(read_index(path).values()))
    for name in names:
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{path} names the part {name!r}, which is not a file beside it; fetch it again")
    return [path.with_name(name) for name in names]


def read_index(path: Path) -> dict[str, str]:
    """Read the index: tensor name to the part that contains it.

    Raises:
        CheckpointError: The index is damaged or empty.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        whole = isinstance(found, dict) and found and all(isinstance(part, str) for part in found.values())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of weights, or a damaged one; fetch it again") from error
    if not whole:
        raise CheckpointError(f"{path} is not an index of weights, or a damaged one; fetch it again")
    return dict(found)
