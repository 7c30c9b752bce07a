"""A tiny dataset of drawn photos whose colour determines the labels, and recipes for it."""

from pathlib import Path

import numpy as np
from PIL import Image

from fakes import tiny_taxonomy
from intclip.data.sample import Dataset, Sample
from intclip.methods.registry import METHODS
from intclip.training.recipe import Recipe, load_recipe

CLASSES = 3
METHODS["toy_method"] = "toy_method:ToyMethod"


def toy_dataset(folder: Path, *, train: int = 40, rest: int = 16, single: bool = False) -> Dataset:
    """Make photos of one colour with noise; label k holds if channel k is bright."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    splits: dict[str, list[Sample]] = {}
    for split, count in (("train", train), ("val", rest), ("test", rest)):
        samples = []
        for i in range(count):
            labels = np.eye(CLASSES)[i % CLASSES] if single else (rng.random(CLASSES) < 0.5)
            labels = labels.astype(np.float32)
            colour = 60 + 140 * labels + rng.normal(0, 3, CLASSES)
            pixels = np.clip(colour + rng.normal(0, 8, (30, 30, CLASSES)), 0, 255).astype(np.uint8)
            path = folder / f"{split}-{i:03d}.png"
            Image.fromarray(pixels).save(path)
            samples.append(Sample(id=path.stem, targets=labels, image=path))
        splits[split] = samples
    return Dataset("toy", tiny_taxonomy(CLASSES), "singlelabel" if single else "multilabel", splits)


def toy_recipe(*overrides: str) -> Recipe:
    """Return the built-in "tiny" recipe on the toy set, quick and offline."""
    base = (
        "data.val=val data.test=test data.limit=null backbone.name=tiny backbone.engine=torch cache.path=off "
        "optim.lr=0.05 schedule.epochs=3 schedule.warmup_epochs=0 train.batch_size=8 train.device=cpu train.workers=1 "
        "train.log_every=2 evaluate.bootstrap=20"
    )
    return load_recipe("tiny", [*base.split(), *overrides])
