"""CoCoOp (CVPR 2022): contexts that move with the photo, made multi-label."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.cocoop.model import CoCoOp, CocoopOptions

__all__ = ["OPTIONS", "CoCoOp", "CocoopOptions", "build"]

OPTIONS = CocoopOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: CocoopOptions) -> CoCoOp:
    """CoCoOp with its contexts as words give them, and a random meta-net."""
    return CoCoOp(backbone, taxonomy, options)
