"""Spelling of labels: one form for texts that look the same."""

import unicodedata


def spelling(text: str) -> str:
    """Return a text with single spaces and composed accents (Unicode NFC); macOS writes "é" as two characters."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def fold(text: str) -> str:
    """Return the `spelling` of a label for comparison, ignoring case."""
    return spelling(text).casefold()
