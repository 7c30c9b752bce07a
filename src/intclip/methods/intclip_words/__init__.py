"""IntCLIP whose semantic map also asks the words of a post."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.intclip_words.model import IntclipWords, IntclipWordsOptions, WordAttention

__all__ = ["OPTIONS", "IntclipWords", "IntclipWordsOptions", "WordAttention", "build"]

OPTIONS = IntclipWordsOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: IntclipWordsOptions) -> IntclipWords:
    """The method, untrained: it says what an untrained IntCLIP says, whatever the words."""
    return IntclipWords(backbone, taxonomy, options)
