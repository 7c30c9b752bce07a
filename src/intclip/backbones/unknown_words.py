"""Texts in words that a text tower has never seen: all of them get the same embedding, and so the same score."""

from collections.abc import Sequence

from intclip.backbones.base import Backbone
from intclip.errors import IntclipError

MOST_UNKNOWN = 0.5
"""Above this share of unknown tokens, what is known does not carry the meaning."""


def check_known(backbone: Backbone, texts: Sequence[str], remedy: str) -> None:
    """Refuse texts that the text tower does not know.

    Args:
        backbone: Whose text tower.
        texts: What to embed.
        remedy: What the user can do, for the message.

    Raises:
        IntclipError: More than half of a text's tokens are unknown; the message names the text.
    """
    for text, share in zip(texts, backbone.unknown_share(texts), strict=True):
        if share > MOST_UNKNOWN:
            raise IntclipError(f"the text tower of {backbone.name} does not know the words of {text[:60]!r}; {remedy}")
