"""Backbones by name."""

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from intclip.backbones import hub
from intclip.backbones.architecture import ARCHITECTURES, Architecture, Split, infer_architecture, with_heads
from intclip.backbones.base import Backbone
from intclip.backbones.checkpoint_files import find_weights, read_hints, read_state_dict
from intclip.backbones.checkpoints import build_clip, to_openai_layout
from intclip.backbones.clip import ClipBackbone, random_clip
from intclip.backbones.hub import HubFile
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import CheckpointError

WEIGHTS_VARIABLE = "INTCLIP_WEIGHTS"
"""Environment variable: a folder of weight files such as `RN101.pt` or `ViT-B-32.safetensors`."""

RANDOM = "@random"
_SAFE, _BIN = "open_clip_model.safetensors", "pytorch_model.bin"
HUB_FILES: dict[str, HubFile] = {
    "RN50": HubFile(
        "timm/resnet50_clip.openai",
        _SAFE,
        "ec3d92cf63a5f9d591f0d611b736895966c73076",
        "da0baa37fb2211eee5729ab69ed587eb10d48f5b7076ceeed01552fc3d4cb4ee",
    ),
    "RN101": HubFile("timm/resnet101_clip.openai", _SAFE),
    "RN50x4": HubFile(
        "timm/resnet50x4_clip.openai", _SAFE, None, "fcd5a494550d0951f314a9d74225887e727ddc20c28c78962b58464705bfb465"
    ),
    "RN50x16": HubFile("timm/resnet50x16_clip.openai", _SAFE),
    "RN50x64": HubFile("timm/resnet50x64_clip.openai", _SAFE),
    "ViT-B/32": HubFile(
        "openai/clip-vit-base-patch32",
        _BIN,
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
    "ViT-B/16": HubFile(
        "openai/clip-vit-base-patch16",
        _BIN,
        "57c216476eefef5ab752ec549e440a49ae4ae5f3",
        "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
    ),
    "ViT-L/14": HubFile(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "ViT-L/14@336px": HubFile(
        "openai/clip-vit-large-patch14-336",
        _BIN,
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    ),
}
"""Where OpenAI's weights are. A pin that is None is one we do not know for sure; see `hub`."""


def load_backbone(name: str, *, checkpoint: str | os.PathLike[str] | None = None, split: Split = "paper") -> Backbone:
    """Load a frozen backbone by name.

    Args:
        name: One of `backbone_names()`, or "hf:owner/name[@revision]", a CLIP of any size on the hub. "@random" behind
            a CLIP's name gives it seeded random weights: to try all of a pipeline where there are no weights.
        checkpoint: Weights of a CLIP: a file or folder in the layout of OpenAI, open_clip or Hugging Face, or a hub
            repository as "hf:owner/name[@revision]". Without it: the folder that INTCLIP_WEIGHTS names, then the hub.
        split: Where the trunk ends; see `ClipBackbone` and `lite.LiteBackbone`.

    Raises:
        CheckpointError: The name or split is unknown, the weights cannot be had, or they are not of this architecture.
        MissingExtraError: The weights are on the hub and `huggingface_hub` is not installed.

    Example:
        >>> load_backbone("RN101", checkpoint="RN101.pt")  # doctest: +SKIP
    """
    if split not in get_args(Split):
        raise CheckpointError(f"no split is called {split!r}; known: {', '.join(get_args(Split))}")
    if name.startswith(hub.PREFIX) and checkpoint is None:
        return _read_clip(hub.fetch_repository(name), name, split, None)
    if name.endswith(RANDOM) and checkpoint is None:
        backbone = random_backbone(name.removesuffix(RANDOM), split=split)
        backbone.name = name
        return backbone
    builder = BUILDERS.get(name)
    if builder is None:
        near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.4)
        hint = f", did you mean {near[0]}" if near else ""
        raise CheckpointError(f"no backbone is called {name!r}{hint}; known: {', '.join(BUILDERS)}")
    return builder(name, checkpoint, split)


def random_backbone(name: str, *, seed: int = 0, split: Split = "paper") -> ClipBackbone:
    """A named CLIP with seeded random weights, for tests and speed measurements.

    Args:
        name: One of `ARCHITECTURES`; for other sizes see `clip.random_clip`.
        seed: Same seed, same weights.
        split: See `ClipBackbone`.

    Raises:
        CheckpointError: There is no such architecture.
    """
    if name not in ARCHITECTURES:
        raise CheckpointError(f"no CLIP is called {name!r}; known: {', '.join(ARCHITECTURES)}")
    return random_clip(ARCHITECTURES[name], seed=seed, split=split, name=name)


def backbone_names() -> list[str]:
    """Names that `load_backbone` takes."""
    return list(BUILDERS)


def _load_clip(name: str, checkpoint: str | os.PathLike[str] | None, split: Split) -> Backbone:
    return _read_clip(_find(name, checkpoint), name, split, ARCHITECTURES[name])


def _read_clip(weights: Path, name: str, split: Split, expected: Architecture | None) -> ClipBackbone:
    """The CLIP in a weight file; with `expected`, one of that architecture only (activation and heads aside)."""
    state = to_openai_layout(read_state_dict(weights))
    found = infer_architecture(state)
    if expected is not None and found != expected:
        raise CheckpointError(f"{weights} holds a CLIP of the kind {found.label}, not {name}")
    hints = read_hints(weights)
    told = with_heads(replace(found, activation=hints.activation), hints.vision_heads, hints.text_heads)
    return build_clip(told, state, split=split, name=name)


def _find(name: str, checkpoint: str | os.PathLike[str] | None) -> Path:
    """The weight file of a CLIP: what is given, else in the folder of weights, else on the hub."""
    if checkpoint is not None:
        text = os.fspath(checkpoint)
        return hub.fetch_repository(text) if text.startswith(hub.PREFIX) else find_weights(Path(text).expanduser())
    if folder := os.environ.get(WEIGHTS_VARIABLE):
        if not Path(folder).is_dir():
            raise CheckpointError(f"{WEIGHTS_VARIABLE} names {folder}, which is no folder; correct or unset it")
        stem = name.replace("/", "-").replace("@", "-")
        for candidate in (f"{stem}.safetensors", f"{stem}.pt", f"{stem}.bin", stem):
            path = Path(folder, candidate)
            if path.exists():
                return find_weights(path)
    return hub.fetch(HUB_FILES[name])


def _load_lite(name: str, checkpoint: str | os.PathLike[str] | None, split: Split) -> Backbone:
    if checkpoint is not None:
        raise CheckpointError(f"{name} brings its own weights; it takes no checkpoint")
    from intclip.backbones.lite import build_lite

    return build_lite(split, name)


Builder = Callable[[str, str | os.PathLike[str] | None, Split], Backbone]
BUILDERS: dict[str, Builder] = {**dict.fromkeys(LITE_BACKBONES, _load_lite), **dict.fromkeys(ARCHITECTURES, _load_clip)}
