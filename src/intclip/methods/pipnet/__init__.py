"""PIP-Net (2023)."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.pipnet.model import PipNet, PipnetOptions

__all__ = ["OPTIONS", "PipNet", "PipnetOptions", "build"]

OPTIONS = PipnetOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: PipnetOptions) -> PipNet:
    """PIP-Net, untrained: its prototypes are random until `prepare` has seen the training photos."""
    return PipNet(backbone, taxonomy, options)
