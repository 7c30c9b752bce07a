"""The embedded model on real photos: a new user's first commands."""

import itertools

import numpy as np
import pytest
import skimage.data
import sklearn.datasets
import torch

import intclip
from intclip.inference.loading import is_zero_shot
from intclip.labels import load_taxonomy
from intclip.labels.reading import parse_taxonomy


@pytest.fixture(scope="module")
def lite(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield intclip.load("lite", engine="openvino")


@pytest.fixture(scope="module")
def arrays():
    own = [getattr(skimage.data, name)() for name in ("coffee", "chelsea", "astronaut", "rocket")]
    return own + [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


@pytest.mark.parametrize("name", ["lite2", "lite+lite2"])
def test_the_larger_ones_load_by_their_names_and_take_any_labels(arrays, name):
    words = ["a cup of coffee", "a cat"]
    model = intclip.load(name, engine="torch", taxonomy=parse_taxonomy(words, "things"))
    assert model.card.backbone == name
    assert [found.top(1)[0][0] for found in model.predict(arrays[:2])] == words
    assert is_zero_shot(name)
    assert not is_zero_shot("proxy")


def test_openvino_says_what_torch_says_alone_and_in_a_batch(lite, arrays):
    together = np.stack([p.probabilities for p in lite.predict(arrays, batch_size=4)])
    alone = np.stack([lite.predict(array)[0].probabilities for array in arrays])
    np.testing.assert_allclose(alone, together, atol=1e-5, rtol=0)
    method = lite.method()
    backbone = method.backbone
    pixels = torch.stack([backbone.preprocess(image) for image in map(_pil, arrays)])
    with torch.no_grad():
        output = method(backbone.features(pixels, method.needs), maps=True)
    np.testing.assert_allclose(together, output.logits.sigmoid().numpy(), atol=1e-4, rtol=0)
    evidence = lite.explain(arrays[0], "Easy life")
    index = lite.taxonomy.index("Easy life")
    np.testing.assert_allclose(evidence.regions["sight"], output.maps["sight"][0, index].numpy(), atol=1e-3)


def test_it_names_two_or_three_of_28_intents(lite, arrays):
    """With the zero-shot threshold, neither no labels nor all labels are predicted."""
    assert lite.taxonomy.names == load_taxonomy("intentonomy").names
    found = lite.predict(arrays)
    counts = [len(prediction.labels) for prediction in found]
    assert 0.5 <= np.mean(counts) <= 6
    for prediction in found:
        assert set(prediction.level(len(lite.taxonomy.levels) - 1)) == set(list(lite.taxonomy.levels.values())[-1])
        for level in itertools.islice(lite.taxonomy.levels, 1, None):
            assert max(prediction.level(level).values()) == pytest.approx(prediction.probabilities.max())


def _pil(array):
    from PIL import Image

    return Image.fromarray(array)
