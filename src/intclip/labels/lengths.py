"""How long a sentence is: in words, which the forms of the paper's Table 3 count, and in CLIP tokens."""

from intclip.clip_tokens import token_ids

WORD_RANGES: dict[str, tuple[int, int]] = {"3-5": (3, 5), "6-9": (6, 9), "11-15": (11, 15), "16-20": (16, 20)}
"""Form to the least and largest number of words of its sentences."""
CONTEXT_LENGTH = 77
"""Tokens that CLIP's text tower reads, its start and end marks included."""
PROMPT_TOKENS = 18
"""Tokens that a learned prompt takes besides its sentence: 16 context vectors, start and end."""


def count_words(text: str) -> int:
    """Number of words: runs of characters between blanks, so that "hard-working" is one."""
    return len(text.split())


def count_clip_tokens(text: str) -> int:
    """Number of CLIP tokens, start and end marks included."""
    return len(token_ids(text))
