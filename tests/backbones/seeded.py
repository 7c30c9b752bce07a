"""Weights and inputs that are equal on every machine and in every version: numpy streams seeded by name."""

import zlib

import numpy as np
import torch
from torch import Tensor

from intclip.backbones.architecture import Architecture

SMALL_RESNET = Architecture(
    embed_dim=32,
    image_size=96,
    vision_layers=(2, 1, 2, 1),
    vision_width=4,
    patch_size=None,
    text_width=128,
    text_layers=2,
    context_length=16,
    vocab_size=64,
)
SMALL_VIT = Architecture(
    embed_dim=32,
    image_size=48,
    vision_layers=4,
    vision_width=128,
    patch_size=16,
    text_width=64,
    text_layers=3,
    context_length=16,
    vocab_size=64,
)
SMALL = {"resnet": SMALL_RESNET, "vit": SMALL_VIT}


def values(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal values that depend only on the name."""
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    return torch.from_numpy(stream.standard_normal(shape).astype(np.float32))


def weights(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return values that keep activations at normal scale: matrices by fan-in, gains about 1, variances positive."""
    raw = values(key, shape)
    if key.endswith("running_var"):
        return 0.5 + raw.abs()
    if key == "logit_scale":
        return torch.tensor(2.6592)
    if key.endswith("gamma"):
        return 0.2 * raw
    if len(shape) > 1:
        return raw / np.prod(shape[1:]) ** 0.5
    is_gain = key.endswith(".weight")
    return 0.1 * raw + (1.0 if is_gain else 0.0)


def seeded_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Return a state dict of `weights`, without BatchNorm's counters."""
    return {key: weights(key, shape) for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}


def token_rows(architecture: Architecture) -> Tensor:
    """Three rows of tokens of different lengths: start, text, end (the highest id), zeros."""
    start, end = architecture.vocab_size - 2, architecture.vocab_size - 1
    rows = torch.zeros(3, architecture.context_length, dtype=torch.int64)
    for row, length in zip(rows, (4, 9, architecture.context_length), strict=True):
        ids = (values(f"tokens{length}", (length,)).abs() * 20).long().clamp(1, start - 1)
        row[:length] = ids
        row[0], row[length - 1] = start, end
    return rows


def pixels(architecture: Architecture, batch: int = 2) -> Tensor:
    side = architecture.image_size
    return values("pixels", (batch, 3, side, side))
