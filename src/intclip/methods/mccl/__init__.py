"""MCCL (2025): multi-grained compositional visual clues."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.mccl.model import MCCL
from intclip.methods.mccl.options import McclOptions

__all__ = ["MCCL", "OPTIONS", "McclOptions", "build"]

OPTIONS = McclOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: McclOptions) -> MCCL:
    """MCCL, untrained: its prototypes are random until `prepare` has seen the training photos."""
    return MCCL(backbone, taxonomy, options)
