"""Text to token ids of OpenAI's CLIP.

OpenAI cleans a text (mojibake, HTML entities, whitespace, case) and splits it by byte-pair encoding.
`instant-clip-tokenizer` does the splitting; the cleaning, and the two special tokens if spelled out in a text, are
handled here. `tests/backbones/recorded/tokens.json` has OpenAI's own ids to compare with.
"""

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import ftfy
from instant_clip_tokenizer import Tokenizer

START, END = 49406, 49407
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_SPECIAL_PATTERN = re.compile("|".join(map(re.escape, _SPECIAL)))


def token_ids(text: str) -> list[int]:
    """Return all ids of a text, including start and end."""
    return [START, *_pieces(clean(text)), END]


def clean(text: str) -> str:
    """Clean a text like OpenAI's tokenizer: repaired, unescaped twice, single spaces, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def _pieces(text: str) -> Iterator[int]:
    """Return ids of a clean text; a spelled-out special token is one id."""
    done = 0
    for match in _SPECIAL_PATTERN.finditer(text):
        # After punctuation, OpenAI's pattern has already consumed the "<|".
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
