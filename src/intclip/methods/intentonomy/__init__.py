"""The Intentonomy baseline (2021)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.intentonomy.model import Intentonomy, IntentonomyOptions

__all__ = ["OPTIONS", "Intentonomy", "IntentonomyOptions", "build"]

OPTIONS = IntentonomyOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: IntentonomyOptions) -> Intentonomy:
    """The baseline, untrained: its copy of the deep layers equals the frozen ones, the head is random."""
    return Intentonomy(backbone, taxonomy, options)
