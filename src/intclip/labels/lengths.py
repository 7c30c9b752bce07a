"""Length of a sentence in words, as counted by the paper's Table 3, and in CLIP tokens."""

WORD_RANGES: dict[str, tuple[int, int]] = {"3-5": (3, 5), "6-9": (6, 9), "11-15": (11, 15), "16-20": (16, 20)}
"""Form to the minimum and maximum number of words of its sentences."""
CONTEXT_LENGTH = 77
"""Context length of CLIP's text tower, including start and end tokens."""
PROMPT_TOKENS = 18
"""Tokens of a learned prompt besides its sentence: 16 context vectors, start and end."""
SENTENCE_TOKENS = 64 - PROMPT_TOKENS
"""Maximum CLIP tokens of a sentence, without start and end, whose prompt also fits SigLIP's and TIPS's 64 tokens."""


def count_words(text: str) -> int:
    """Count words separated by spaces, so that "hard-working" is one."""
    return len(text.split())


def count_clip_tokens(text: str) -> int:
    """Count CLIP tokens, including start and end."""
    from intclip.clip_tokens import token_ids  # slow to import, for ftfy; most programs count no tokens

    return len(token_ids(text))
