"""DualCoOp (NeurIPS 2022): pairs of learned prompts on the frozen image tower."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.dualcoop.model import DualCoOp, DualcoopOptions

__all__ = ["OPTIONS", "DualCoOp", "DualcoopOptions", "build"]

OPTIONS = DualcoopOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: DualcoopOptions) -> DualCoOp:
    """DualCoOp with random contexts."""
    return DualCoOp(backbone, taxonomy, options)
