"""`embed_texts` and `unknown_share`: the text half of the contract, on every kind of text tower."""

import pytest
import torch
from torch.testing import assert_close

from fakes import TinyBackbone
from intclip.backbones import load_backbone
from intclip.backbones.architecture import Architecture
from intclip.backbones.clip import random_clip
from intclip.backbones.unknown_words import check_known
from intclip.errors import IntclipError

TEXTS = ["a dog on the beach at noon", "a cat", "", "a dog", "a cat", *(f"photo number {n} of many" for n in range(40))]


def clip():
    return random_clip(Architecture(16, 32, 1, 64, 16, 64, 2, context_length=20))


@pytest.fixture(params=["tiny", "lite", "clip"])
def backbone(request):
    return {"tiny": TinyBackbone, "lite": lambda: load_backbone("lite"), "clip": clip}[request.param]()


def test_each_text_is_its_own_unit_embedding_in_order(backbone):
    found = backbone.embed_texts(TEXTS)
    with torch.no_grad():
        alone = torch.cat([backbone.encode_text(backbone.tokenize([text])) for text in TEXTS])
    assert found.dtype == torch.float32
    assert_close(found, alone / alone.norm(dim=1, keepdim=True), rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], found[4])


def test_no_texts_have_no_embeddings(backbone):
    assert backbone.embed_texts([]).shape == (0, backbone.embed_dim)


def test_progress_ends_at_the_number_of_texts(backbone):
    seen = []
    backbone.embed_texts(TEXTS, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(TEXTS), len(TEXTS))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_long_text_is_refused_or_the_mean_of_its_halves():
    backbone = clip()
    words = [f"word{n}" for n in range(12)]
    with pytest.raises(IntclipError, match="word0"):
        backbone.embed_texts([" ".join(words)])
    halves = backbone.encode_text(backbone.tokenize([" ".join(words[:6]), " ".join(words[6:])]))
    mean = halves.mean(dim=0)
    assert_close(backbone.embed_texts([" ".join(words)], long="average")[0], mean / mean.norm(), rtol=1e-5, atol=1e-5)


def test_one_long_word_is_halved_too():
    found = clip().embed_texts(["ab" * 60], long="average")
    assert found.isfinite().all()


def test_unknown_share():
    shares = load_backbone("lite").unknown_share(["a dog", "ሰላም ለዓለም", "a ሰላም", ""])
    assert shares == [0.0, 1.0, 0.5, 0.0]
    assert clip().unknown_share(["a dog", "ሰላም"]) == [0.0, 0.0]


@pytest.mark.parametrize("text", ["婚礼", "свадьба", "عرس", "사랑", "😀"])
def test_texts_of_unknown_words_are_refused(text):
    lite = load_backbone("lite")
    with pytest.raises(IntclipError, match=f"lite .*{text}"):
        check_known(lite, ["a dog", text], "write English")
    check_known(lite, ["a party 🎉", "Größe", "café", "naïve ♥ love"], "")
    check_known(clip(), [text], "")
