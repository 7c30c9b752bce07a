"""CoOp (IJCV 2022): learned context on the photo's embedding, made multi-label."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.coop.model import CoOp, CoopOptions

__all__ = ["OPTIONS", "CoOp", "CoopOptions", "build"]

OPTIONS = CoopOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: CoopOptions) -> CoOp:
    """CoOp with random contexts, or those that its words give."""
    return CoOp(backbone, taxonomy, options)
