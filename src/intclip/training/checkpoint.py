"""Checkpoints: one safetensors file with JSON in its header, written atomically.

Nothing is pickled. The two newest checkpoints are kept; if the newest is damaged, the previous one
is used.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from intclip.errors import CheckpointError, reason
from intclip.files import atomic_path

VERSION = 1
NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint-previous.safetensors"
Json = dict[str, Any]


def save_checkpoint(directory: Path, tensors: Mapping[str, Tensor], meta: Json) -> None:
    """Write a checkpoint of a run and keep the previous one.

    Args:
        directory: The run's directory.
        tensors: Any names; shared memory is allowed.
        meta: JSON values.

    Raises:
        StorageError: It cannot be written; the previous checkpoint is kept.
    """
    newest, previous = directory / NEWEST, directory / PREVIOUS
    with atomic_path(newest) as partial:
        write_tensors(partial, tensors, meta)
        if newest.exists():
            newest.replace(previous)


def load_checkpoint(directory: Path) -> tuple[dict[str, Tensor], Json] | None:
    """Read the newest valid checkpoint of a run, or None if there is none.

    Raises:
        CheckpointError: All checkpoints are damaged or of another version.
    """
    damaged: CheckpointError | None = None
    for path in (directory / NEWEST, directory / PREVIOUS):
        if path.exists():
            try:
                return read_tensors(path)
            except CheckpointError as error:
                damaged = damaged or error
    if damaged is not None:
        raise damaged
    return None


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Json) -> None:
    """Write tensors and JSON to one safetensors file, with a checksum of the tensors."""
    whole = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    header = {"intclip": json.dumps({"version": VERSION, "sha256": _digest(whole), "meta": meta})}
    path.write_bytes(save(whole, metadata=header))  # save_file does not raise OSError on a full disk


def read_tensors(path: Path) -> tuple[dict[str, Tensor], Json]:
    """Read a file of `write_tensors`.

    Raises:
        CheckpointError: The file is damaged, not a checkpoint, or of another version.
    """
    mend = "delete it to fall back to an older one or start again"
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("intclip", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({reason(error)}); {mend}") from error
    if not isinstance(header, dict) or header.get("version") != VERSION:
        raise CheckpointError(f"{path} is not a checkpoint of this version of intclip; {mend}")
    meta = header.get("meta")
    if header.get("sha256") != _digest(tensors) or not isinstance(meta, dict):
        raise CheckpointError(f"{path} is damaged (its checksum differs); {mend}")
    return tensors, meta


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
