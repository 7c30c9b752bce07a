"""Several methods in one, whose logits are averaged."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.ensemble.model import Ensemble, EnsembleOptions, Member

__all__ = ["OPTIONS", "Ensemble", "EnsembleOptions", "Member", "build"]

OPTIONS = EnsembleOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: EnsembleOptions) -> Ensemble:
    """The members, untrained."""
    return Ensemble(backbone, taxonomy, options)
