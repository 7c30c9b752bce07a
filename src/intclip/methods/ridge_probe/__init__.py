"""Ridge regression on mean features of the frozen tower, in closed form."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.ridge_probe.model import RidgeProbe, RidgeProbeOptions

__all__ = ["OPTIONS", "RidgeProbe", "RidgeProbeOptions", "build"]

OPTIONS = RidgeProbeOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: RidgeProbeOptions) -> RidgeProbe:
    """The probe, with zero weights."""
    return RidgeProbe(backbone, taxonomy, options)
