"""Learned prompts with the text towers of every family: other prompts of a batch have no effect."""

import pytest
import torch
from torch.testing import assert_close

from families import FAMILIES
from intclip.backbones.padded_text import PaddedText
from intclip.errors import TaxonomyError
from intclip.methods.prompts import PromptLearner, PromptOptions

SHORT, LONG = "a dog", "a dog that runs along the wide grey beach in the rain"


def learner(text, sentences, **options):
    torch.manual_seed(0)
    return PromptLearner(text, sentences, PromptOptions(context_length=3, class_specific=False), halves=1, **options)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_has_the_same_features_alone_and_beside_a_longer_one(family, position):
    """In towers with fixed padding, prompts cut at the longest must be padded again."""
    text = FAMILIES[family]().text
    alone = learner(text, [SHORT], class_token_position=position).encode(text)
    beside = learner(text, [SHORT, LONG], class_token_position=position).encode(text)
    assert_close(beside[:, :1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(beside[:, 1], beside[:, 0], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_that_spells_a_text_is_that_text(family):
    """If contexts are a text's token embeddings, the prompt's features equal the text's."""
    text = FAMILIES[family]().text
    whole, words = f"old red dog {SHORT}", "old red dog"
    tokens = text.tokenize([words])
    count = int(text.lengths(tokens)[0]) - text.start_tokens - text.end_tokens
    spelled = PromptLearner(text, [SHORT], PromptOptions(context_length=count), halves=1, words=words)
    assert_close(spelled.encode(text)[0], text(text.tokenize([whole])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_may_fill_the_context_and_not_exceed_it(family):
    """Sentences are counted by the tower's own tokens and length: 64 for SigLIP and TIPS, not CLIP's 77."""
    text = FAMILIES[family]().text
    room = text.context_length - 3 - text.start_tokens - text.end_tokens
    fits = " ".join(["dog"] * room)
    full = learner(text, [fits])
    assert full.lengths.tolist() == [text.context_length]
    assert full.encode(text).isfinite().all()
    with pytest.raises(TaxonomyError, match=f"{fits} dog.*{text.context_length - 2} tokens"):
        learner(text, [fits, f"{fits} dog"])


def test_the_padding_of_a_padded_tower_is_part_of_it():
    """Without it outputs differ, so the tests above would detect its loss."""
    text = FAMILIES["SigLIP"]().text
    assert isinstance(text, PaddedText)
    prompts = learner(text, [SHORT])
    embeddings, lengths = prompts.embeddings()
    longer = torch.cat([embeddings, embeddings.new_zeros(1, 1, text.width)], dim=1)
    assert_close(text.encode_embeddings(longer, lengths), prompts.encode(text)[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(text.encode_embeddings(longer, lengths + 1), prompts.encode(text)[0], atol=1e-3)
