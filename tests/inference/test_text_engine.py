"""Text embeddings by OpenVINO equal torch's, for every family of towers."""

import pytest
import torch

from families import FAMILIES
from intclip.inference import text_engine

WORDS = ["why", "people", "share", "photos", "of", "the", "sea", "with", "friends", "at", "night"]
TEXTS = [" ".join(WORDS[: 1 + i % len(WORDS)]) + f" {i}" for i in range(2 * text_engine.PAYS_FROM)]


@pytest.mark.parametrize("family", FAMILIES)
def test_many_texts_are_converted_and_keep_their_embeddings(family, monkeypatch):
    tower = FAMILIES[family]().text
    expected = tower.embed_texts(TEXTS)
    converted = []
    convert = text_engine.to_openvino
    monkeypatch.setattr(text_engine, "to_openvino", lambda *a, **k: converted.append(1) or convert(*a, **k))
    text_engine.use_engine(tower)
    torch.testing.assert_close(tower.embed_texts(TEXTS[: text_engine.PAYS_FROM]), expected[: text_engine.PAYS_FROM])
    assert not converted, "few texts are not worth a conversion"
    torch.testing.assert_close(tower.embed_texts(TEXTS), expected, atol=1e-5, rtol=0)
    assert converted == [1]
