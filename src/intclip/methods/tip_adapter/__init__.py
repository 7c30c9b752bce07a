"""Tip-Adapter (ECCV 2022): the training photos as a cache over zero-shot classification, made multi-label."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.tip_adapter.model import TipAdapter, TipAdapterOptions

__all__ = ["OPTIONS", "TipAdapter", "TipAdapterOptions", "build"]

OPTIONS = TipAdapterOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: TipAdapterOptions) -> TipAdapter:
    """Tip-Adapter with an empty cache; `prepare` fills it."""
    return TipAdapter(backbone, taxonomy, options)
