"""Additional inputs of a photo are transformed like the photo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fakes import TinyBackbone
from intclip.data.masks import Masks
from intclip.data.sample import Sample
from intclip.data.transforms import Augment, AugmentConfig
from intclip.methods.post_text import text_vectors
from intclip.training.source import PLAIN, ExtraInputs, FeatureSource, pixel_reader

GEOMETRY = AugmentConfig(scale=(0.3, 0.9), cutout=0, operations=0)


@pytest.mark.parametrize("kept_views", [0, 2])
@pytest.mark.parametrize("epoch", [None, 1, 2])
def test_a_mask_is_cropped_and_mirrored_as_its_photo(kept_views: int, epoch: int | None, tmp_path: Path) -> None:
    """Each photo is its own mask, so the pixels of every view must equal its mask."""
    backbone = TinyBackbone()
    rng = np.random.default_rng(0)
    samples = []
    for name in "abc":
        grey = Image.fromarray(rng.integers(0, 256, (6, 8), dtype=np.uint8)).resize((40, 30))
        grey.save(tmp_path / f"{name}.png")
        samples.append(Sample(name, np.zeros(5, dtype=np.float32), tmp_path / f"{name}.png"))
    samples[2] = Sample("no mask", samples[2].targets, samples[2].image)
    augment = Augment(GEOMETRY, backbone.preprocess, seed=4)
    words = {"text": lambda indices: torch.eye(3)[indices]}
    plain = Augment(PLAIN, backbone.preprocess)
    source = FeatureSource(
        samples,
        pixel_reader(samples, backbone.preprocess, lambda batch: {"pixels": batch}, augment=augment),
        augmented=True,
        kept_views=kept_views,
        extra_inputs=ExtraInputs(samples, words, Masks(tmp_path), plain=plain, augment=augment),
    )
    plan = [np.array([1, 2]), np.array([0])]
    batches = list(source.batches(plan, epoch=epoch, views=2))
    for indices, batch in zip(plan, batches, strict=True):
        for view in batch.views:
            torch.testing.assert_close(view["text"], torch.eye(3)[indices])
            photos = view["pixels"][:, :1] * 0.25 + 0.5
            known = torch.from_numpy(indices != 2)
            torch.testing.assert_close(view["mask"][known], photos[known], atol=0.003, rtol=0)
            assert view["mask"][~known].isnan().all()
    if epoch is not None:
        assert not torch.allclose(batches[0].views[0]["mask"][0], batches[0].views[1]["mask"][0])


def test_words_have_one_length_and_no_words_are_zero() -> None:
    backbone = TinyBackbone()
    found = text_vectors(["a dog by the water", None, " "], backbone)
    assert found is not None
    torch.testing.assert_close(found.square().sum(dim=1), torch.tensor([8.0, 0, 0]))
    assert text_vectors([None, " "], backbone) is None
