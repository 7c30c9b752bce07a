"""Detect texts of unknown words, which would all get the same embedding and score."""

from collections.abc import Sequence

from intclip.backbones.base import Backbone
from intclip.errors import IntclipError

MOST_UNKNOWN = 0.5
"""Maximum share of unknown tokens."""


def check_known(backbone: Backbone, texts: Sequence[str], remedy: str) -> None:
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
