"""Words to embeddings by a text tower."""

import numpy as np
import pytest

from intclip.backbones import load_backbone
from intclip.posts.encoders import tower_encoder


@pytest.fixture
def tower(monkeypatch):
    """lite, and how many texts its tower has read."""
    backbone, read = load_backbone("lite"), []
    forward = backbone.text.forward
    monkeypatch.setattr(backbone.text, "forward", lambda tokens: read.append(len(tokens)) or forward(tokens))
    return backbone, read


def test_a_text_that_comes_again_is_read_once(tower):
    backbone, read = tower
    texts = ["a blue sea", "fire", "a blue sea", "", "fire", "a blue sea"]
    found = tower_encoder(backbone)(texts)
    assert sum(read) == 3
    alone = np.concatenate([tower_encoder(backbone)([text]) for text in texts])
    np.testing.assert_allclose(found, alone, atol=1e-6)


def test_a_long_text_is_the_mean_of_its_pieces(tower):
    backbone, read = tower
    half = "sea " * 400
    found = tower_encoder(backbone)([half + "fire " * 400])
    assert sum(read) == 2
    np.testing.assert_allclose(
        found[0], tower_encoder(backbone)([half.strip(), ("fire " * 400).strip()]).mean(axis=0), atol=1e-6
    )
