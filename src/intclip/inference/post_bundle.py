"""A model of posts as a directory: `posts.json` and `weights.safetensors`, read back exactly or refused."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from intclip.errors import BundleError, IntclipError
from intclip.files import atomic_directory, sha256_file
from intclip.inference.bundle import MAX_JSON_BYTES, WEIGHTS_FILE, BackboneName, Sha256
from intclip.inference.loading import POSTS_FILE
from intclip.inference.weights import DAMAGED, TensorInfo, read_weights, write_weights
from intclip.labels.taxonomy import Taxonomy
from intclip.posts.features import Blocks
from intclip.posts.fusion import Logits
from intclip.posts.model import Channel, Decision, PostModel
from intclip.version import __version__

POSTS_VERSION = 1
ChannelName = Literal["text", "image"]
ModeName = Literal["text", "image", "both"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ChannelInfo(_Part):
    """What a channel is made of: its blocks in order, vocabularies, kernels, and how the head was chosen."""

    blocks: list[str]
    terms: dict[str, list[str]]
    gammas: list[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]]
    votes: dict[str, Share]
    ranking: dict[str, Share]


class PostsInfo(_Part):
    """The content of `posts.json`."""

    format: Literal["intclip-posts"] = "intclip-posts"
    format_version: Literal[1] = 1
    intclip: str
    backbone: BackboneName
    text_encoder: str
    task: Literal["multilabel", "singlelabel"]
    taxonomy: dict[str, Any]
    sentences: list[list[str]]
    channels: dict[ChannelName, ChannelInfo]
    sharpness: dict[ModeName, Annotated[float, Field(gt=0, allow_inf_nan=False)] | None]
    metrics: dict[str, Any] | None = None
    weights_sha256: Sha256
    tensors: dict[str, TensorInfo]


@dataclass(frozen=True, eq=False)
class PostBundle:
    """A model of posts with what it takes to encode new ones.

    Attributes:
        model: The fitted channels and decisions.
        backbone: Name of the frozen backbone.
        text_encoder: See `intclip.posts.encoders.text_encoder`.
        sentences: Forms of K class sentences.
        metrics: What was measured, mode by mode.
    """

    model: PostModel
    backbone: str
    text_encoder: str
    sentences: list[list[str]]
    metrics: dict[str, Any] | None = field(default=None, repr=False)


def save_posts(path: str | os.PathLike[str], bundle: PostBundle, *, overwrite: bool = False) -> Path:
    """Write a bundle of posts, whole or not at all.

    Raises:
        StorageError: It cannot be written, or something else lies there.
        BundleError: A tensor is not finite.
    """
    model = bundle.model
    state: dict[str, npt.NDArray[Any]] = {}
    channels: dict[ChannelName, ChannelInfo] = {}
    for name, channel in model.channels.items():
        gammas = sorted(channel.weights)
        state |= {f"{name}.posts": channel.posts, f"{name}.bias": channel.bias, f"{name}.anchor": channel.anchor}
        state |= {f"{name}.mean.{block}": mean for block, mean in channel.blocks.means.items()}
        state |= {f"{name}.idf.{kind}": idf for kind, idf in channel.blocks.idf.items()}
        state |= {f"{name}.weights.{i}": channel.weights[gamma] for i, gamma in enumerate(gammas)}
        channels[cast("ChannelName", name)] = ChannelInfo(
            blocks=list(channel.blocks.means),
            terms={kind: list(terms) for kind, terms in channel.blocks.terms.items()},
            gammas=gammas,
            votes=dict(channel.votes),
            ranking=dict(channel.ranking),
        )
    for mode, decision in model.decisions.items():
        state |= {f"{mode}.logit_weights": decision.logits.weights, f"{mode}.logit_bias": decision.logits.bias}
        state[f"{mode}.thresholds"] = decision.thresholds
    with atomic_directory(path, overwrite=overwrite) as folder:
        tensors = write_weights(folder / WEIGHTS_FILE, state, dtype="float32")
        info = PostsInfo(
            intclip=__version__,
            backbone=bundle.backbone,
            text_encoder=bundle.text_encoder,
            task="singlelabel" if model.exclusive else "multilabel",
            taxonomy=model.taxonomy.to_dict(),
            sentences=bundle.sentences,
            channels=channels,
            sharpness={cast("ModeName", mode): decision.sharpness for mode, decision in model.decisions.items()},
            metrics=bundle.metrics,
            weights_sha256=sha256_file(folder / WEIGHTS_FILE),
            tensors=tensors,
        )
        (folder / POSTS_FILE).write_text(info.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Path(path)


def load_post_bundle(path: str | os.PathLike[str]) -> PostBundle:
    """Read a bundle of posts.

    Raises:
        BundleError: It is missing, damaged, contradicts itself, or was written by a newer version.
    """
    folder = Path(path)
    info = _read_info(folder / POSTS_FILE)
    state = read_weights(folder / WEIGHTS_FILE, info.tensors, sha256=info.weights_sha256)
    try:
        taxonomy = Taxonomy.from_dict(info.taxonomy)
        model = PostModel(
            taxonomy,
            info.task == "singlelabel",
            {name: _channel(name, part, state, len(taxonomy)) for name, part in info.channels.items()},
            {mode: _decision(mode, sharp, state, len(taxonomy)) for mode, sharp in info.sharpness.items()},
        )
    except (KeyError, ValueError, IntclipError) as error:
        raise BundleError(f"{folder}: its parts do not agree ({error}); fit or fetch the bundle again") from error
    modes = set(model.channels) | ({"both"} if len(model.channels) == 2 else set())
    if modes != set(model.decisions) or any(len(form) != len(taxonomy) for form in info.sentences):
        raise BundleError(f"{folder}: channels, decisions and sentences do not agree; fit or fetch the bundle again")
    return PostBundle(model, info.backbone, info.text_encoder, info.sentences, info.metrics)


def _read_info(file: Path) -> PostsInfo:
    if not file.is_file() or file.is_symlink() or file.stat().st_size > MAX_JSON_BYTES:
        raise BundleError(f"{file} is missing, a link, or too large to describe a bundle of posts; {DAMAGED}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if isinstance(version, int) and version > POSTS_VERSION:
            raise BundleError(f"{file.parent} was written by a newer intclip; upgrade with: pip install -U intclip")
        return PostsInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BundleError(f"{file}: {place}: {first['msg']}; {DAMAGED}") from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise BundleError(f"{file} is not valid JSON ({error}); fit or fetch the bundle again") from error


def _channel(name: str, info: ChannelInfo, state: Mapping[str, npt.NDArray[Any]], classes: int) -> Channel:
    blocks = Blocks(
        {block: state[f"{name}.mean.{block}"] for block in info.blocks},
        info.terms,
        {kind: state[f"{name}.idf.{kind}"] for kind in info.terms},
    )
    posts = state[f"{name}.posts"]
    width = sum(len(mean) for mean in blocks.means.values())
    weights = {gamma: state[f"{name}.weights.{i}"].astype(np.float64) for i, gamma in enumerate(info.gammas)}
    if any(len(terms) != len(blocks.idf[kind]) for kind, terms in info.terms.items()):
        raise ValueError(f"the vocabulary of channel {name} and its weights differ in length")
    if posts.shape[1:] != (width,) or any(alpha.shape != (len(posts), classes) for alpha in weights.values()):
        raise ValueError(f"the tensors of channel {name} do not fit each other")
    bias, anchor = (_row(state[f"{name}.{part}"], classes) for part in ("bias", "anchor"))
    return Channel(blocks, posts, weights, bias, anchor, info.votes, info.ranking)


def _decision(mode: str, sharpness: float | None, state: Mapping[str, npt.NDArray[Any]], classes: int) -> Decision:
    weights = state[f"{mode}.logit_weights"].astype(np.float64)
    if weights.shape != (2 if mode == "both" else 1, classes):
        raise ValueError(f"the weights of {mode} have shape {weights.shape}")
    logits = Logits(weights, _row(state[f"{mode}.logit_bias"], classes))
    return Decision(logits, sharpness, _row(state[f"{mode}.thresholds"], classes))


def _row(values: npt.NDArray[Any], classes: int) -> npt.NDArray[np.float64]:
    if values.shape != (classes,):
        raise ValueError(f"{values.shape} numbers for {classes} labels")
    return values.astype(np.float64)
