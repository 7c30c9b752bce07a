"""Detect texts of unknown words, which would all get the same embedding and score."""

from collections.abc import Sequence
from typing import Protocol

from intclip.errors import IntclipError

OTHER_LANGUAGE = "write the labels in English, or give each an English `sentence:` in the file"
"""Advice for labels."""
MOST_UNKNOWN = 0.5
"""Maximum share of unknown tokens."""


class Reader(Protocol):
    """A backbone or its text tower."""

    name: str

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Return the share of unknown tokens in each text, in [0, 1]."""
        ...


def check_known(backbone: Reader, texts: Sequence[str], remedy: str) -> None:
    """Raise for texts that the text tower does not know.

    Args:
        backbone: Backbone of the text tower.
        texts: Texts to embed.
        remedy: Advice for the message.

    Raises:
        IntclipError: More than half of a text's tokens are unknown; the message names the text.
    """
    for text, share in zip(texts, backbone.unknown_share(texts), strict=True):
        if share > MOST_UNKNOWN:
            raise IntclipError(f"the text tower of {backbone.name} does not know the words of {text[:60]!r}; {remedy}")
