"""Read checkpoint files without executing code: safetensors, PyTorch files, OpenAI's archives."""

import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import load_file
from torch import Tensor

from intclip.backbones.weight_files import INDEX, read_index, weight_parts
from intclip.errors import CheckpointError, reason


def read_state_dict(path: Path) -> Mapping[str, object]:
    """Read the state dict in a `.safetensors` file, a `torch.save` file, or a TorchScript archive such as OpenAI's.

    Raises:
        CheckpointError: The file is damaged, of another kind, or holds more than weights.
    """
    if path.name.endswith(INDEX):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # SafetensorError, or torch's errors about shapes and types
            raise CheckpointError(
                f"{path} is not a safetensors file, or a damaged one: {reason(error)}; download or copy it again"
            ) from error
    try:
        state = _read_torchscript(path) if _is_torchscript(path) else _load_weights(path)
    except Exception as error:  # damaged pickles and archives raise nearly anything
        raise CheckpointError(
            f"{path} cannot be read as weights alone (damaged, or with code in it): {reason(error)};"
            " convert it where it came from with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{path} has a {type(state).__name__}, not a state dict")
    return state


def _read_parts(path: Path) -> dict[str, object]:
    state: dict[str, object] = {}
    for part in weight_parts(path):
        if not part.is_file():
            raise CheckpointError(f"{path} lists the missing part {part.name}; copy it next to the index")
        state |= read_state_dict(part)
    if missing := sorted(read_index(path).keys() - state.keys()):
        raise CheckpointError(f"{path} lists tensors missing from its parts: {', '.join(missing[:5])}")
    return state


def _load_weights(file: Path | IO[bytes]) -> object:
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Inert:
    """Replaces every class that a TorchScript archive defines: attributes without behaviour."""


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a TorchScript archive, named by their place in the module tree.

    The archive holds a checkpoint (`data.pkl` and `data/`) and code. The code is never read. Without it, the archive is
    a file for `torch.load(weights_only=True)`, which maps the archive's classes to an inert one and rejects all others.
    """
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as plain:
        with zipfile.ZipFile(plain, "w") as target:
            for info in archive.infolist():
                inner = info.filename.partition("/")[2]
                if inner in ("data.pkl", "version", "byteorder") or inner.startswith("data/"):
                    with archive.open(info) as source, target.open(info.filename, "w", force_zip64=True) as copy:
                        shutil.copyfileobj(source, copy)
                if inner == "data.pkl":
                    classes = set(_script_classes(archive.read(info)))
        plain.seek(0)
        with torch.serialization.safe_globals([(_Inert, name) for name in classes]):
            root = _load_weights(plain)
    return dict(_tensors(root, ""))


def _script_classes(pickled: bytes) -> Iterator[str]:
    for opcode, argument, _ in pickletools.genops(pickled):
        if opcode.name == "GLOBAL" and isinstance(argument, str) and argument.startswith("__torch__."):
            yield argument.replace(" ", ".")


def _tensors(module: object, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Inert):
            yield from _tensors(value, f"{prefix}{name}.")
