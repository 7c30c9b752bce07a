"""Text to the token ids of OpenAI's CLIP, as lists: what the text towers read, and what sentences are counted in.

OpenAI cleans a text (mojibake, HTML entities, whitespace, case) and splits it by byte-pair encoding. The splitting is
`instant-clip-tokenizer`'s; the cleaning, and the two special tokens that OpenAI's tokenizer knows when a text spells
them out, are done here. `tests/backbones/recorded/tokens.json` has OpenAI's own ids to compare with.
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
    """All ids of one text, start and end included."""
    return [START, *_pieces(clean(text)), END]


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
