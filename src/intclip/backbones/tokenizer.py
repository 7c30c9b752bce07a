"""Text to the token ids of OpenAI's CLIP.

OpenAI cleans a text (mojibake, HTML entities, whitespace, case) and splits it by byte-pair encoding. The splitting is
`instant-clip-tokenizer`'s; the cleaning, and the two special tokens that OpenAI's tokenizer knows when a text spells
them out, are done here. `tests/backbones/recorded/tokens.json` has OpenAI's own ids to compare with.
"""

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import ftfy
import torch
from instant_clip_tokenizer import Tokenizer
from torch import Tensor

from intclip.errors import IntclipError

START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_SPECIAL_PATTERN = re.compile("|".join(map(re.escape, _SPECIAL)))


def tokenize(texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False) -> Tensor:
    """Tokens (T, context_length), int64, the ids of OpenAI's tokenizer: start, text, end, then zeros.

    Args:
        texts: One text or several.
        context_length: Length of every row.
        truncate: Cut what is too long, keeping the end token, instead of refusing it.

    Raises:
        IntclipError: A text has more than `context_length` tokens, and `truncate` is off.

    Example:
        >>> tokenize(["a photo"], context_length=6).tolist()
        [[49406, 320, 1125, 49407, 0, 0]]
    """
    texts = [texts] if isinstance(texts, str) else texts
    return pad([encode(text, context_length, truncate=truncate) for text in texts], context_length)


def encode(text: str, context_length: int, *, truncate: bool = False) -> list[int]:
    """Token ids of one text, start and end included.

    Raises:
        IntclipError: There are more than `context_length`, and `truncate` is off.
    """
    ids = [START, *_pieces(clean(text)), END]
    if len(ids) <= context_length:
        return ids
    if not truncate:
        shown = text if len(text) <= 40 else f"{text[:40]}…"
        raise IntclipError(
            f"the text {shown!r} has {len(ids)} tokens, more than {context_length}; shorten it, or pass truncate=True"
        )
    return [*ids[: context_length - 1], END]


def pad(rows: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
    """Rows of ids as one int64 tensor (T, L), padded with 0 to `length`, or to the longest row."""
    length = max((len(row) for row in rows), default=0) if length is None else length
    tokens = torch.zeros(len(rows), length, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def clean(text: str) -> str:
    """A text as OpenAI's tokenizer sees it: mended, unescaped twice, single blanks, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def _pieces(text: str) -> Iterator[int]:
    """Ids of a clean text; a special token that is spelled out is one id."""
    done = 0
    for match in _SPECIAL_PATTERN.finditer(text):
        # Behind punctuation OpenAI's pattern has already taken the "<|" into a run of signs.
        if match.start() > done and _is_sign(text[match.start() - 1]):
            continue
        yield from _tokenizer().encode(text[done : match.start()])
        yield _SPECIAL[match[0]]
        done = match.end()
    yield from _tokenizer().encode(text[done:])


def _is_sign(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character)[0] not in "LN"


@lru_cache(maxsize=1)
def _tokenizer() -> Tokenizer:
    return Tokenizer()
