"""Token ids: OpenAI's own, recorded."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import TEXTS

from intclip.backbones import tokenize
from intclip.backbones.tokenizer import encode
from intclip.clip_tokens import END, START, clean
from intclip.errors import IntclipError

RECORDED = [tuple(row) for row in json.loads((Path(__file__).parent / "recorded/tokens.json").read_text("utf-8"))]
UNLIMITED = 10**6


def test_every_text_is_recorded():
    assert [text for text, _ in RECORDED] == TEXTS


@pytest.mark.parametrize(("text", "ids"), RECORDED)
def test_ids_are_openais(text, ids):
    assert encode(text, UNLIMITED) == ids


@pytest.mark.parametrize(("text", "ids"), RECORDED)
def test_rows_are_openais(text, ids):
    cut = ids if len(ids) <= 77 else [*ids[:76], END]
    row = tokenize([text], truncate=True)
    assert row.dtype == torch.int64
    assert row.tolist() == [cut + [0] * (77 - len(cut))]


def test_documented_example_and_a_single_text():
    assert tokenize("a photo", context_length=6).tolist() == [[START, 320, 1125, END, 0, 0]]
    assert tokenize([]).shape == (0, 77)


def test_the_longest_text_that_fits():
    assert tokenize(["cat " * 75])[0].tolist() == [START, *[2368] * 75, END]
    with pytest.raises(IntclipError, match=r"78.*77.*truncate=True"):
        tokenize(["cat " * 76])
    assert tokenize(["cat " * 76], truncate=True)[0].tolist() == [START, *[2368] * 75, END]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=40))
def test_any_text_has_ids_and_a_clean_one_is_left_alone(text):
    ids = encode(text, UNLIMITED)
    assert ids[0] == START
    assert ids[-1] == END
    assert all(0 <= token <= END for token in ids)
    assert encode(f"  {text}\n", UNLIMITED) == ids
    assert "  " not in clean(text)


def test_lone_surrogates_do_not_crash():
    assert encode("a \ud800 b", UNLIMITED)[1] == 320


def test_threads_share_the_tokenizer():
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda row: encode(row[0], UNLIMITED) == row[1], RECORDED * 20))
    assert all(results)
