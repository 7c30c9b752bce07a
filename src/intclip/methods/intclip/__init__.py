"""IntCLIP (ECCV 2024)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.aggregation import SightAssistedAggregation
from intclip.methods.intclip.model import IntCLIP, IntclipOptions

__all__ = ["OPTIONS", "IntCLIP", "IntclipOptions", "SightAssistedAggregation", "build"]

OPTIONS = IntclipOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: IntclipOptions) -> IntCLIP:
    """IntCLIP, untrained: the semantic branch equals the sight branch, the contexts are random."""
    return IntCLIP(backbone, taxonomy, options)
