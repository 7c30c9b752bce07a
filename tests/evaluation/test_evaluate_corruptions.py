"""`intclip evaluate --corruptions` on a toy with a known answer: colours determine the labels, and noise hides them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intclip.data.corruptions import CORRUPTIONS, STRENGTHS
from intclip.data.sample import Dataset, Sample
from intclip.evaluation.corruptions import corruption_curves, draw_curves, render_curves
from intclip.evaluation.evaluate import evaluate
from intclip.inference.pipeline import score_posts


class ByContrast:
    """Predicts "sharp" from the contrast of neighbouring pixels, which blur reduces and noise increases."""

    channels = ("image",)

    def __init__(self, taxonomy, preprocessing):
        self.taxonomy, self.thresholds = taxonomy, np.array([0.5, 0.5], dtype=np.float32)
        self.card = type("Card", (), {"preprocessing": preprocessing})

    def score(self, posts, *, batch_size, workers, augment):
        def compute(pixels, texts):
            return {"probabilities": self.predict_pixels(pixels, texts)}

        return score_posts(
            posts, self.card.preprocessing, compute, batch_size=batch_size, channels=self.channels,
            alone=self.channels, workers=workers, augment=augment,
        )  # fmt: skip

    def resolve_thresholds(self, thresholds, channels):
        return self.thresholds

    def predict_pixels(self, pixels, texts):
        contrast = np.abs(np.diff(pixels, axis=3)).mean(axis=(1, 2, 3))
        return np.stack([np.clip(contrast, 0, 1), 1 - np.clip(contrast, 0, 1)], axis=1).astype(np.float32)


@pytest.fixture
def task(tmp_path: Path):
    from fakes import TinyBackbone, tiny_taxonomy

    taxonomy = tiny_taxonomy(2)
    rng = np.random.default_rng(0)
    samples = []
    for number in range(12):
        sharp = number % 2
        pixels = rng.integers(0, 256, (24, 24, 3)) if sharp else np.full((24, 24, 3), 90 + number)
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels.astype(np.uint8)).resize((240, 240), Image.Resampling.NEAREST).save(path)
        samples.append(Sample(str(number), np.array([sharp, 1 - sharp], dtype=np.float32), path))
    dataset = Dataset("toy", taxonomy, "multilabel", {"test": samples})
    return ByContrast(taxonomy, TinyBackbone().preprocess), dataset


def test_curves_hold_every_kind_and_strength(task, tmp_path):
    predictor, dataset = task
    clean = evaluate(predictor, dataset, draws=0)
    curves = corruption_curves(predictor, dataset, "test", clean)
    assert curves["clean"]["mAP"] == 1.0
    assert list(curves["corrupted"]) == list(CORRUPTIONS)
    assert all(len(figures) == len(STRENGTHS) for figures in curves["corrupted"].values())
    assert json.loads(json.dumps(curves)) == curves
    jpeg = [each["mAP"] for each in curves["corrupted"]["jpeg"]]
    assert jpeg[0] == 1.0  # a light compression leaves the contrast
    text = render_curves(curves, "toy")
    assert f"| jpeg | {100 * jpeg[0]:.2f} |" in text
    draw_curves(curves, tmp_path / "curves.png", "toy")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (720, 480)


def test_thresholds_are_those_of_the_clean_photos(task):
    predictor, dataset = task
    predictor.thresholds[:] = 0.99
    clean = evaluate(predictor, dataset, draws=0)
    curves = corruption_curves(predictor, dataset, "test", clean)
    heavy = curves["corrupted"]["blur"][-1]
    assert heavy["micro_f1"] < 0.7  # at that threshold, no blurred photo is sharp
