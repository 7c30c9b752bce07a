"""Backbones by name."""

import difflib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from intclip.backbones import hub
from intclip.backbones.architecture import (
    ARCHITECTURES,
    Activation,
    Architecture,
    Regions,
    Split,
    infer_architecture,
)
from intclip.backbones.base import Backbone
from intclip.backbones.checkpoint_files import read_state_dict
from intclip.backbones.checkpoints import build_clip, family_details
from intclip.backbones.clip import ClipBackbone, random_clip
from intclip.backbones.config_section import ModelConfig
from intclip.backbones.families import TRAITS
from intclip.backbones.file_tokenizer import FileTokenizer
from intclip.backbones.hub_files import HUB_FILES, OPENAI_FILES
from intclip.backbones.layouts import source_of, to_openai_layout, unwrap
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.backbones.model_config import read_config
from intclip.backbones.sources import ANY_SIZE, RANDOM, local_weights
from intclip.backbones.weight_files import find_weights
from intclip.errors import CheckpointError

_log = logging.getLogger(__name__)

Checkpoint = str | os.PathLike[str]


def load_backbone(
    name: str,
    *,
    checkpoint: Checkpoint | None = None,
    split: Split = "paper",
    activation: Activation | None = None,
    regions: Regions = "tokens",
) -> Backbone:
    """Load a frozen backbone by name.

    Args:
        name: One of `backbone_names()`; "CLIP" for one of any size, with a checkpoint; or "hf:owner/name[@revision]"
            for one on the hub. The suffix "@random" gives seeded random weights, to try a pipeline without weights.
        checkpoint: Weights: a file or folder in the layout of OpenAI, open_clip or Hugging Face, or a hub repository as
            "hf:owner/name[@revision]". Default: the folder in INTCLIP_WEIGHTS, then the hub.
        split: Where the trunk ends; see `ClipBackbone` and `lite.LiteBackbone`.
        activation: Activation of the transformers' MLPs, if no file beside the weights has it; None uses OpenAI's
            QuickGELU for CLIP, and logs this.
        regions: Region features of a ViT with a class token: "tokens", the patches after the last block; "values",
            their values in the last block (MaskCLIP); or "clear", these values mixed by query-to-query attention
            (ClearCLIP). Image embeddings are the same. See `region_block`.

    Raises:
        CheckpointError: The name, split or regions are unknown; the tower does not support these regions; the weights
            are unavailable or of another architecture; or a file beside them has an unsupported setting.
        MissingExtraError: The weights are on the hub and `huggingface_hub` is not installed.

    Example:
        >>> load_backbone("RN101", checkpoint="RN101.pt")  # doctest: +SKIP
    """
    if split not in get_args(Split):
        raise CheckpointError(f"unknown split {split!r}; choose {', '.join(get_args(Split))}")
    if activation is not None and activation not in get_args(Activation):
        raise CheckpointError(f"unknown activation {activation!r}; choose {', '.join(get_args(Activation))}")
    if regions not in get_args(Regions):
        raise CheckpointError(f"unknown regions {regions!r}; choose {', '.join(get_args(Regions))}")
    if name.startswith(hub.HUB_PREFIX) and checkpoint is None:
        return _read(hub.fetch_repository(name), _Wanted(name, split, activation, regions))
    if name.endswith(RANDOM) and checkpoint is None:
        backbone = random_backbone(name.removesuffix(RANDOM), split=split, regions=regions)
        backbone.name = name
        return backbone
    if checkpoint is not None and (name == ANY_SIZE or name.startswith(hub.HUB_PREFIX)):
        return _read(
            _find(name, checkpoint), _Wanted(name, split, activation, regions, checkpoint=os.fspath(checkpoint))
        )
    builder = BUILDERS.get(name)
    if builder is None:
        if name == ANY_SIZE:
            raise CheckpointError(f"{ANY_SIZE} needs a checkpoint: pass its weights")
        near = difflib.get_close_matches(name, BUILDERS, n=1, cutoff=0.4)
        hint = f", did you mean {near[0]}" if near else ""
        if Path(name).exists():
            hint = f"; for weights of your own give the name {ANY_SIZE} and this as the checkpoint"
        raise CheckpointError(f"unknown backbone {name!r}{hint}; known: {', '.join(BUILDERS)}")
    if activation is None and regions == "tokens":
        return builder(name, checkpoint, split)
    if name in LITE_BACKBONES:
        raise CheckpointError(f"{name} has its own weights; omit activation and regions")
    return _load_clip(name, checkpoint, split, activation, regions)


def random_backbone(name: str, *, seed: int = 0, split: Split = "paper", regions: Regions = "tokens") -> ClipBackbone:
    """Build a named backbone with seeded random weights, for tests and benchmarks.

    Args:
        name: One of `ARCHITECTURES`; for other sizes see `clip.random_clip`.
        seed: Same seed, same weights.
        split: See `ClipBackbone`.
        regions: See `load_backbone`.

    Raises:
        CheckpointError: The architecture is unknown or does not support these regions.
    """
    if name not in ARCHITECTURES:
        raise CheckpointError(f"unknown CLIP {name!r}; known: {', '.join(ARCHITECTURES)}")
    return random_clip(replace(ARCHITECTURES[name], regions=regions), seed=seed, split=split, name=name)


def backbone_names() -> list[str]:
    """Return the names that `load_backbone` accepts without a checkpoint."""
    return list(BUILDERS)


@dataclass(frozen=True)
class _Wanted:
    """Expected content of a weight file; without an architecture, towers of any family and size."""

    name: str
    split: Split
    activation: Activation | None
    regions: Regions = "tokens"
    architecture: Architecture | None = None
    given: bool = True
    checkpoint: str | None = None


def _read(weights: Path, wanted: _Wanted) -> ClipBackbone:
    """Load the backbone in a weight file, with the files beside it."""
    raw = read_state_dict(weights)
    state = to_openai_layout(raw)
    config = read_config(weights, source_of(unwrap(raw)))
    found = _checked(infer_architecture(state), config, wanted, weights)
    details = family_details(found)
    if wanted.architecture is not None and wanted.architecture.same_sizes(found):
        details |= {key: getattr(wanted.architecture, key) for key in ("vision_heads", "text_heads", "end_token")}
    details |= config.details
    if (head_width := details.pop("vision_head_width", None)) is not None:
        if found.vision_width % head_width:
            raise CheckpointError(f"{config.source}: head_width {head_width} does not divide {found.vision_width}")
        details["vision_heads"] = found.vision_width // head_width
    if wanted.activation is not None:
        details |= {"activation": wanted.activation, "text_activation": None}
    elif "activation" not in config.details and found.family == "clip" and not _is_openais(raw, weights, wanted):
        _log.warning(
            "%s: no configuration gives the activation; assuming QuickGELU, as in OpenAI's models. If it "
            "was trained with the exact GELU, like most of LAION's, set activation=gelu (backbone.activation in a "
            "recipe), or put its config.json or open_clip_config.json next to it",
            weights,
        )
    architecture = found.with_details(details | {"regions": wanted.regions})
    backbone = build_clip(
        architecture, state, split=wanted.split, name=wanted.name, tokenizer=_tokenizer(weights, architecture, config)
    )
    backbone.preprocess = _preprocess(backbone, config, weights)
    backbone.given_activation, backbone.given_checkpoint = wanted.activation, wanted.checkpoint
    return backbone


def _checked(found: Architecture, config: ModelConfig, wanted: _Wanted, weights: Path) -> Architecture:
    """Return the architecture inferred from the weights, completed by the configuration.

    Raises:
        CheckpointError: Weights, configuration and expected architecture contradict each other.
    """
    if config.family == "metaclip2" and found.family == "clip":
        found = replace(found, family="metaclip2")
    if config.family is not None and config.family != found.family:
        raise CheckpointError(
            f"{config.source} describes {TRAITS[config.family].title}, {weights.name} beside it holds"
            f" {TRAITS[found.family].title}; fetch both again"
        )
    sizes = dict(config.sizes)
    side = sizes.get("image_size")
    rim = found.patch_size is not None and side is not None and side // found.patch_size == found.grid
    if side is not None and (rim or found.family == "mobileclip"):
        found = replace(found, image_size=side)  # the patches may leave a border; FastViT accepts any side
    if found.family == "tipsv2" and "context_length" in sizes:
        found = replace(found, context_length=sizes["context_length"])
    for field, value in sizes.items():
        if (shown := getattr(found, field)) != value:
            raise CheckpointError(
                f"{config.source} gives {field} {value}, {weights.name} beside it has {shown}: not one model's files"
            )
    named = wanted.architecture
    if named is not None and named.same_sizes(found) and "image_size" not in sizes:
        found = replace(found, image_size=named.image_size)
    # With a family's name, given weights may have any size; CLIP's names imply a size.
    free = named is not None and named.family == found.family != "clip" and wanted.given
    if named is not None and not free and not named.same_sizes(found):
        raise CheckpointError(f"{weights} holds {found.label}, not {wanted.name}; the name {ANY_SIZE} loads any tower")
    return found


def _is_openais(raw: Mapping[str, object], weights: Path, wanted: _Wanted) -> bool:
    """Return whether these are OpenAI's own weights (archives, or pinned hub files), whose activation is known."""
    return "input_resolution" in raw or (
        not wanted.given and wanted.name in OPENAI_FILES and HUB_FILES[wanted.name].filename == weights.name
    )


def _tokenizer(weights: Path, architecture: Architecture, config: ModelConfig) -> FileTokenizer | None:
    """Load the tokenizer beside the weights, for a family with its own."""
    path = weights.with_name("tokenizer.json")
    if TRAITS[architecture.family].own_tokens or not path.is_file():
        return None
    padded = architecture.family == "siglip"
    return FileTokenizer(
        path, architecture.vocab_size, ends=padded, clean=padded, pad_id=config.tokenizer.get("pad_id")
    )


def _preprocess(backbone: ClipBackbone, config: ModelConfig, weights: Path) -> Any:
    """Return the family's preprocessing with the files' changes.

    Raises:
        CheckpointError: The files require a size that the tower does not support.
    """
    size = config.pixels.get("size", backbone.image_size)
    if size != backbone.image_size:
        raise CheckpointError(
            f"the preprocessing beside {weights} gives photos of {size} pixels, the image tower takes"
            f" {backbone.image_size}; they are not of one model"
        )
    return backbone.preprocess.model_copy(update=dict(config.pixels))


def _find(name: str, checkpoint: Checkpoint | None) -> Path:
    """Find a backbone's weights: the given file, else in the folder of weights, else on the hub."""
    if checkpoint is not None:
        text = os.fspath(checkpoint)
        return hub.fetch_repository(text) if text.startswith(hub.HUB_PREFIX) else find_weights(Path(text).expanduser())
    if (path := local_weights(name)) is not None:
        return find_weights(path)
    file = HUB_FILES[name]
    if name in OPENAI_FILES:
        return hub.fetch(file)
    revision = f"@{file.revision}" if file.revision else ""
    return hub.fetch_repository(f"{hub.HUB_PREFIX}{file.repo}{revision}")


def _load_clip(
    name: str,
    checkpoint: Checkpoint | None,
    split: Split,
    activation: Activation | None = None,
    regions: Regions = "tokens",
) -> Backbone:
    given = None if checkpoint is None else os.fspath(checkpoint)
    wanted = _Wanted(name, split, activation, regions, ARCHITECTURES[name], checkpoint is not None, given)
    return _read(_find(name, checkpoint), wanted)


def _load_lite(name: str, checkpoint: Checkpoint | None, split: Split) -> Backbone:
    if checkpoint is not None:
        raise CheckpointError(f"{name} has its own weights; omit checkpoint")
    from intclip.backbones.lite import build_lite

    return build_lite(split, name)


Builder = Callable[[str, Checkpoint | None, Split], Backbone]
BUILDERS: dict[str, Builder] = {**dict.fromkeys(LITE_BACKBONES, _load_lite), **dict.fromkeys(ARCHITECTURES, _load_clip)}
