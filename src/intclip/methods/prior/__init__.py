"""The labels' frequencies, whatever the photo: the floor under every method."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.prior.model import Prior, PriorOptions

__all__ = ["OPTIONS", "Prior", "PriorOptions", "build"]

OPTIONS = PriorOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: PriorOptions) -> Prior:
    """The prior; `prepare` counts."""
    return Prior(backbone, taxonomy, options)
