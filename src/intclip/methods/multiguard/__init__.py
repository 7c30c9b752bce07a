"""MultiGuard (NeurIPS 2022): any method, smoothed and certified."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.multiguard.model import MultiGuard, MultiguardOptions
from intclip.methods.multiguard.smoothing import Smoothed, smoothing

__all__ = ["OPTIONS", "MultiGuard", "MultiguardOptions", "Smoothed", "build", "smoothing"]

OPTIONS = MultiguardOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: MultiguardOptions) -> MultiGuard:
    """A method to be trained under noise."""
    return MultiGuard(backbone, taxonomy, options)
