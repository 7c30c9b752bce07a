"""SST (AAAI 2022): structured semantic transfer."""

from intclip.backbones.base import Backbone
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.sst.model import SST, SstOptions

__all__ = ["OPTIONS", "SST", "SstOptions", "build"]

OPTIONS = SstOptions


def build(backbone: Backbone, taxonomy: Taxonomy, options: SstOptions) -> SST:
    """SST, untrained; its label graph is empty until `prepare` has seen the training labels."""
    return SST(backbone, taxonomy, options)
