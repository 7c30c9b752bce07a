"""An image tower with asymmetric loss (2021)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.asl_resnet.model import AslResnet, AslResnetOptions

__all__ = ["OPTIONS", "AslResnet", "AslResnetOptions", "build"]

OPTIONS = AslResnetOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: AslResnetOptions) -> AslResnet:
    """The classifier, untrained: its copy of the deep layers equals the frozen ones, the head is random."""
    return AslResnet(backbone, taxonomy, options)
