"""A two-layer network with asymmetric loss on frozen features."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.mlp_probe.model import MLPProbe, MlpProbeOptions

__all__ = ["OPTIONS", "MLPProbe", "MlpProbeOptions", "build"]

OPTIONS = MlpProbeOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: MlpProbeOptions) -> MLPProbe:
    """The probe, untrained."""
    return MLPProbe(backbone, taxonomy, options)
