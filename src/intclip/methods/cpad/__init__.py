"""CPAD (2023)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.cpad.model import CPAD, CpadOptions

__all__ = ["CPAD", "OPTIONS", "CpadOptions", "build"]

OPTIONS = CpadOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: CpadOptions) -> CPAD:
    """CPAD, untrained: its copy of the deep layers equals the frozen ones, the rest is random."""
    return CPAD(backbone, taxonomy, options)
