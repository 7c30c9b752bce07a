"""One linear layer on the frozen image embedding."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.linear_probe.model import LinearProbe, LinearProbeOptions

__all__ = ["OPTIONS", "LinearProbe", "LinearProbeOptions", "build"]

OPTIONS = LinearProbeOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: LinearProbeOptions) -> LinearProbe:
    """The probe, with zero weights."""
    return LinearProbe(backbone, taxonomy, options)
