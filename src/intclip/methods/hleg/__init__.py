"""HLEG (2023)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.hleg.model import HLEG, HlegOptions

__all__ = ["HLEG", "OPTIONS", "HlegOptions", "build"]

OPTIONS = HlegOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: HlegOptions) -> HLEG:
    """HLEG, untrained: its copy of the deep layers equals the frozen ones, the rest is random."""
    return HLEG(backbone, taxonomy, options)
