"""Multi-label CoCoOp: CoOp with contexts that depend on the photo.

Zhou, Yang, Loy, Liu: Conditional Prompt Learning for Vision-Language Models, CVPR 2022.
"""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.coop.model import CoOp, CoopOptions


class CocoopOptions(CoopOptions, frozen=True):
    """Options of CoCoOp: CoOp's, with the published initial context, and the meta-net's size.

    Attributes:
        reduction: The meta-net's hidden layer has D / reduction units, at least one.
    """

    context_length: int = Field(default=4, ge=1)
    context_words: str | None = "a photo of a"
    reduction: int = Field(default=16, ge=1)


class CoCoOp(CoOp):
    """Prompts depend on the photo, so K prompts (2K if dual) are encoded per photo, in evaluation too."""

    Options = CocoopOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: CocoopOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        hidden = max(backbone.embed_dim // options.reduction, 1)
        self.meta_net = nn.Sequential(
            nn.Linear(backbone.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, backbone.text.width)
        )

    def text_features(self, features: Features) -> Tensor:
        """Return text features (halves, B, K, D), unnormalised."""
        shift = self.meta_net(F.normalize(features["pooled"], dim=1))
        return self.prompts.encode_shifted(self.backbone.text, shift).transpose(0, 1)
