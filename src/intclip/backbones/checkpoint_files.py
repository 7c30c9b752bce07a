"""Read a checkpoint file without running anything in it: safetensors, PyTorch's own files, OpenAI's archives."""

import json
import pickle
import pickletools
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from intclip.backbones.architecture import Activation
from intclip.errors import CheckpointError

WEIGHT_FILES = ("open_clip_model.safetensors", "model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin")
"""Names to look for in a folder. open_clip's first: a repository may hold an image tower alone under the other."""
CONFIG_FILES = ("open_clip_config.json", "config.json")


@dataclass(frozen=True)
class Hints:
    """What a configuration file beside the weights tells that the weights do not.

    Attributes:
        activation: Of the transformers' MLPs.
        vision_heads: Attention heads of a ViT; None where the file is silent.
        text_heads: Attention heads of the text transformer; None where the file is silent.
    """

    activation: Activation = "quick_gelu"
    vision_heads: int | None = None
    text_heads: int | None = None


def find_weights(path: Path) -> Path:
    """The weight file at a path: the file itself, or the one in a folder that bears a usual name.

    Raises:
        CheckpointError: There is none.
    """
    if path.is_dir():
        for name in WEIGHT_FILES:
            if (path / name).is_file():
                return path / name
        raise CheckpointError(f"no weights in {path}; one of these is wanted there: {', '.join(WEIGHT_FILES)}")
    if not path.is_file():
        raise CheckpointError(f"no such checkpoint: {path}")
    return path


def read_state_dict(path: Path) -> Mapping[str, object]:
    """The state dict in a file: `.safetensors`, a file of `torch.save`, or a TorchScript archive such as OpenAI's.

    Raises:
        CheckpointError: The file is damaged, of another kind, or holds more than weights.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is no safetensors file, or a damaged one: {_line(error)}") from error
    try:
        state = _read_torchscript(path) if _is_torchscript(path) else _load_weights(path)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} cannot be read as weights alone (damaged, or with code in it): {_line(error)};"
            " convert it where it came from with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
        ) from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def read_hints(weights: Path) -> Hints:
    """What the configuration beside a weight file tells; OpenAI's ways where there is none.

    Raises:
        CheckpointError: The configuration is no JSON, or names an activation that CLIP does not have.
    """
    for name in CONFIG_FILES:
        config = weights.parent / name
        if not config.is_file():
            continue
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {config}: {_line(error)}") from error
        if isinstance(content, dict) and ("model_cfg" in content or "vision_config" in content):
            return _open_clip_hints(content["model_cfg"]) if "model_cfg" in content else _hf_hints(content, config)
    return Hints()


def _open_clip_hints(model: Mapping[str, Any]) -> Hints:
    vision, text = model.get("vision_cfg", {}), model.get("text_cfg", {})
    head_width = vision.get("head_width")
    return Hints(
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        vision_heads=vision["width"] // head_width if head_width else None,
        text_heads=text.get("heads"),
    )


def _hf_hints(content: Mapping[str, Any], source: Path) -> Hints:
    vision, text = content.get("vision_config") or {}, content.get("text_config") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        raise CheckpointError(f"{source} names the activations {sorted(activations)}; known: quick_gelu, gelu")
    return Hints(
        activation="gelu" if "gelu" in activations else "quick_gelu",
        vision_heads=vision.get("num_attention_heads"),
        text_heads=text.get("num_attention_heads"),
    )


def _load_weights(file: Path | IO[bytes]) -> object:
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Inert:
    """Stands for every class that a TorchScript archive defines: attributes, no behaviour."""


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive, by their place in the module tree.

    The archive is a checkpoint (`data.pkl` and `data/`) beside code that is never looked at: without the code it is a
    file for `torch.load(weights_only=True)`, which is told that the archive's classes are an inert one and refuses
    everything else.
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


def _line(error: BaseException) -> str:
    """An error as a short piece of one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}…"
