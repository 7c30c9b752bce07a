"""LabCR (2024)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.labcr.model import LabCR, LabcrOptions

__all__ = ["OPTIONS", "LabCR", "LabcrOptions", "build"]

OPTIONS = LabcrOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: LabcrOptions) -> LabCR:
    """LabCR, untrained: Query2Label that is trained on two views."""
    return LabCR(backbone, taxonomy, options)
