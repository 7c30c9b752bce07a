"""Tiny models for tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.data.images import read_image
from intclip.data.loading import DRAFT_FACTOR
from intclip.inference.bundle import save_bundle
from intclip.methods.base import Method
from intclip.methods.registry import build_method

OPTIONS = {"context_length": 3, "sentence_form": "6-9"}
THRESHOLDS = [0.3, 0.5, 0.52, 0.6, 0.45]


@contextmanager
def tiny_known() -> Iterator[pytest.MonkeyPatch]:
    """Register the tiny backbone as "tiny", for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
        yield patch


def tiny_intclip() -> Method:
    """Return IntCLIP on the tiny backbone, with learned parts changed from their initial values."""
    torch.manual_seed(1)
    method = build_method("intclip", TinyBackbone(), tiny_taxonomy(), OPTIONS)
    with torch.no_grad():
        for parameter in method.learnable_parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return method.eval()


def write_bundle(path: Path, method: Method | None = None, *, checkpoint: Path | None = None, **changes) -> Path:
    """Write a bundle of `tiny_intclip` or another method, optionally with given backbone weights."""
    method = method or tiny_intclip()
    method.backbone.given_checkpoint = None if checkpoint is None else str(checkpoint)
    arguments = {
        "thresholds": THRESHOLDS,
        "recipe": {"epochs": 3},
        "metrics": {"val": {"mAP": 0.5, "macro_f1": float("nan")}},
    }
    save_bundle(path, method, **(arguments | changes))
    return path


def write_photos(folder: Path) -> list[Path]:
    """Five photos of different sizes and formats."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    sizes = [(40, 30, "jpg"), (24, 24, "png"), (31, 90, "png"), (200, 160, "jpg"), (25, 26, "webp")]
    paths = []
    for i, (width, height, suffix) in enumerate(sizes):
        grid = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        paths.append(folder / f"photo{i}.{suffix}")
        Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return paths


def reference_probabilities(paths: list[Path]) -> np.ndarray:
    """Compute (N, K) with torch, photo by photo, with the backbone's own preprocessing."""
    method = tiny_intclip()
    backbone = method.backbone
    rows = []
    for path in paths:
        pixels = backbone.preprocess(read_image(path, min_side=DRAFT_FACTOR * backbone.image_size))[None]
        with torch.no_grad():
            rows.append(method(backbone.features(pixels, method.needs)).logits.sigmoid()[0].numpy())
    return np.stack(rows)
