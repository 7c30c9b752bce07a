"""Convert texts to padded rows of CLIP's token ids, which come from `intclip.clip_tokens`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from intclip.clip_tokens import END, token_ids
from intclip.errors import TextLengthError

CLIP_TOKENS = END + 1
"""Size of the vocabulary."""


def tokenize(texts: str | Sequence[str], context_length: int = 77, *, truncate: bool = False) -> Tensor:
    """Return tokens (T, context_length), int64, as OpenAI's tokenizer: start, text, end, then zeros.

    Args:
        texts: One text or several.
        context_length: Length of every row.
        truncate: Truncate texts that are too long, keeping the end token, instead of raising.

    Raises:
        TextLengthError: A text has more than `context_length` tokens, and `truncate` is off.

    Example:
        >>> tokenize(["a photo"], context_length=6).tolist()
        [[49406, 320, 1125, 49407, 0, 0]]
    """
    texts = [texts] if isinstance(texts, str) else texts
    return pad([encode(text, context_length, truncate=truncate) for text in texts], context_length)


def encode(text: str, context_length: int, *, truncate: bool = False) -> list[int]:
    """Return the token ids of one text, including start and end.

    Raises:
        TextLengthError: The text has more than `context_length` tokens, and `truncate` is off.
    """
    ids = token_ids(text)
    if len(ids) <= context_length:
        return ids
    if not truncate:
        raise TextLengthError.of(text, len(ids), context_length, "shorten it, or pass truncate=True")
    return [*ids[: context_length - 1], END]


def pad(rows: Sequence[Sequence[int]], length: int | None = None, *, value: int = 0) -> Tensor:
    """Return rows of ids as one int64 tensor (T, L), padded with `value` to `length`, or to the longest row."""
    length = max((len(row) for row in rows), default=0) if length is None else length
    tokens = torch.full((len(rows), length), value, dtype=torch.int64)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
    return tokens
