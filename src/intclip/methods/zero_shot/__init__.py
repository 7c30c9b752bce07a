"""Intents from sentences alone, without training."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.zero_shot.model import TEMPLATES, ZeroShot, ZeroShotOptions

__all__ = ["OPTIONS", "TEMPLATES", "ZeroShot", "ZeroShotOptions", "build"]

OPTIONS = ZeroShotOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: ZeroShotOptions) -> ZeroShot:
    """The zero-shot classifier, ready: its sentences are encoded here."""
    return ZeroShot(backbone, taxonomy, options)
