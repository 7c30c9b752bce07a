"""A fake model that records its calls, and photos as bytes. Does not import torch, so servers start fast."""

import io
import threading
import time

import numpy as np
from PIL import Image

from intclip.backbones.preprocess import Preprocess
from intclip.inference.card import ModelCard
from intclip.inference.predictor import Predictor
from intclip.labels.taxonomy import Taxonomy

SIZE = 8
CLASSES = 5
NAMES = tuple(f"class {i}" for i in range(CLASSES))
TAXONOMY = Taxonomy(
    name="tiny",
    names=NAMES,
    levels={"class": NAMES, "group": ("group 0", "group 1")},
    parents={name: (f"group {i % 2}",) for i, name in enumerate(NAMES)},
    sentence_forms={"fine": NAMES},
    definitions={},
    aliases={},
    source="made for tests",
)


class WatchedEngine:
    """Probabilities are a photo's mean red, green and blue; records batch sizes asked and answered.

    It is blocked while `gate` is clear; `entered` is set once it was called. A photo as red as `poison` makes it fail.
    """

    name = "torch"

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.failing = False
        self.delay = 0.0
        self.poison: int | None = None

    def __call__(self, batch):
        self.asked.append(len(batch))
        self.entered.set()
        assert self.gate.wait(60)
        time.sleep(self.delay)
        means = batch.mean(axis=(2, 3))
        if self.failing or self.poison in (255 * means[:, 0]).round():
            raise RuntimeError("the engine broke")
        self.batches.append(len(batch))
        probabilities = np.concatenate([means, np.full((len(batch), CLASSES - 3), 0.25)], axis=1).astype(np.float32)
        maps = np.repeat(batch[:, :1, ::4, ::4], CLASSES, axis=1)
        return {"probabilities": probabilities, "logits": probabilities, "map_fused": maps}


class WatchedPredictor(Predictor):
    def __init__(self, name: str = "watched") -> None:
        card = ModelCard(
            model=name,
            backbone="none",
            method="watched",
            task="multilabel",
            labels=list(NAMES),
            thresholds=[0.5] * CLASSES,
            preprocessing=Preprocess(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1)),
            maps=["fused"],
            taxonomy=TAXONOMY.to_dict(),
        )
        super().__init__(card, engine="torch")
        self.watched = WatchedEngine()

    def engine(self, *, maps=False, embedding=False):
        return self.watched


def photo(red: int, green: int = 0, blue: int = 0, *, size=(12, 10), kind="PNG") -> bytes:
    """Return an encoded photo of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, (red, green, blue)).save(stream, kind)
    return stream.getvalue()
