"""Query2Label (2021)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.query2label.model import Query2Label, Query2labelOptions

__all__ = ["OPTIONS", "Query2Label", "Query2labelOptions", "build"]

OPTIONS = Query2labelOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: Query2labelOptions) -> Query2Label:
    """Query2Label, untrained: its copy of the deep layers equals the frozen ones, the rest is random."""
    return Query2Label(backbone, taxonomy, options)
