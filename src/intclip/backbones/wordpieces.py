"""Tokenize texts to BERT's word pieces, without importing torch."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from intclip.errors import TextLengthError

CONTEXT_LENGTH = 256
"""Maximum number of tokens in the sentence model's training; BERT's positions would allow 512."""


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a `tokenizer.json`, without padding and truncation."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_rows(tokenizer: Tokenizer, texts: Sequence[str], limit: int = CONTEXT_LENGTH) -> list[list[int]]:
    """Return the token ids of each text, [CLS] … [SEP].

    Raises:
        TextLengthError: A text has more than `limit` tokens.
    """
    rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > limit:
            raise TextLengthError.of(text, len(row), limit)
    return rows


def unknown_share(tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    """Return the share of uninformative tokens in each text, in [0, 1]; 0 for an empty text.

    These are [UNK], and single letters of other alphabets, since the tower was trained on English.
    """
    rows = [encoding.tokens for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
    return [sum(map(_says_nothing, row)) / len(row) if row else 0.0 for row in rows]


def _says_nothing(token: str) -> bool:
    letters = token.removeprefix("##")
    return token == "[UNK]" or (len(letters) == 1 and letters.isalpha() and not letters.isascii())
