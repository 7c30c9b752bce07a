"""A small complete run of a method: train on coloured photos, save, load, predict, explain."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.data.sample import Dataset, Sample
from intclip.training import load_recipe, train


def coloured_photos(folder: Path) -> Dataset:
    """Make photos with label k where channel k is bright."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[Sample]] = {}
    for split, count in (("train", 24), ("val", 10), ("test", 10)):
        splits[split] = []
        for i in range(count):
            labels = (rng.random(3) < 0.5).astype(np.float32)
            pixels = np.clip(60 + 140 * labels + rng.normal(0, 8, (26, 26, 3)), 0, 255).astype(np.uint8)
            path = folder / f"{split}{i}.png"
            Image.fromarray(pixels).save(path)
            splits[split].append(Sample(path.stem, labels, path))
    return Dataset("colours", tiny_taxonomy(3), "multilabel", splits)


def check_round_trip(
    name: str, options: dict, folder: Path, monkeypatch: pytest.MonkeyPatch, *, maps: bool = True
) -> None:
    """Check that the saved model reproduces the run's predictions, and has evidence if the method has `maps`."""
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    monkeypatch.setenv("INTCLIP_CACHE", "off")
    base = (
        "data.limit=null data.val=val data.test=test backbone.name=tiny optim.name=adamw optim.lr=0.01 "
        "schedule.epochs=2 train.batch_size=8 train.device=cpu train.workers=1 evaluate.bootstrap=0"
    )
    recipe = load_recipe("tiny", [*base.split(), f"method={{name: {name}, options: {options}}}"])
    dataset = coloured_photos(folder)
    result = train(recipe, folder / "run", dataset=dataset, progress=False)
    model = intclip.load(result.bundle, engine="torch")
    photos = [sample.image for sample in dataset.splits["test"]]
    predicted = np.stack([p.probabilities for p in model.predict(photos)])
    table = parquet.read_table(folder / "run" / "predictions-test.parquet").to_pydict()
    trained = np.stack([table[label] for label in dataset.taxonomy.names], axis=1)
    np.testing.assert_allclose(predicted, trained, atol=1e-5)
    if maps:
        assert model.explain(photos[0], label="class 1").branches
