"""Emotion class-wise aware loss: errors have more weight for often confused classes and across polarities.

After the published description of Deng and others, Emotion Class-Wise Aware Loss for Image Emotion Classification
(2021); the details are ours, see README.md in this folder.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import binary_cross_entropy_with_logits, soft_cross_entropy
from intclip.methods.asl_resnet.model import AslResnet, AslResnetOptions
from intclip.methods.base import Output


class EcwaOptions(AslResnetOptions, frozen=True):
    """Options: the plain classifier's, whose `loss` here only sets reduction and scale, and the weights.

    Attributes:
        confusion: Weight of a class's confusion with others.
        polarity: Weight of the probability of classes under another parent at the taxonomy's coarsest level.
        momentum: Decay of the confusion table per step.
    """

    confusion: float = Field(default=1.0, ge=0)
    polarity: float = Field(default=1.0, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)


class Ecwa(AslResnet):
    """The plain classifier with this loss.

    Attributes:
        confusion: (K, K), moving average of the mean probability of class j over photos of class i; initially the
            identity.
        distance: (K, K), 1 where two classes have no common parent at the coarsest level.
    """

    Options = EcwaOptions
    options: EcwaOptions
    confusion: Tensor
    distance: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: EcwaOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.register_buffer("confusion", torch.eye(len(taxonomy)))
        self.register_buffer("distance", polarity_distance(taxonomy), persistent=False)

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Update the confusion table with the batch, then return the loss."""
        output = self(views[0])
        with torch.no_grad():
            self._count(self._probabilities(output.logits), targets)
        return self.loss(output, targets)

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the weighted cross-entropy; see README.md."""
        logits, options = output.logits.float(), self.options
        p, y = self._probabilities(logits).detach(), targets.nan_to_num(0)
        confused = 1 - self.confusion.diagonal()
        if self.taxonomy.exclusive:
            share = y / y.sum(dim=1, keepdim=True).clamp_min(1e-6)
            opposite = ((share @ self.distance) * p).sum(dim=1)
            weight = 1 + options.confusion * share @ confused + options.polarity * opposite
            losses = soft_cross_entropy(logits, targets, reduction="none") * weight
            total = losses.sum() if options.loss.reduction == "sum" else losses.mean()
        else:
            opposite = (y[:, :, None] * self.distance).amax(dim=1)
            weight = 1 + y * options.confusion * confused + (1 - y) * options.polarity * opposite
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none") * weight
            total = {"sum": losses.sum(), "batch": losses.sum() / len(y), "mean": losses.mean()}[options.loss.reduction]
        return {"classification": options.loss.scale * total}

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(dim=1) if self.taxonomy.exclusive else logits.float().sigmoid()

    def _count(self, p: Tensor, targets: Tensor) -> None:
        """Update the confusion table for the classes in the batch."""
        y = targets.nan_to_num(0)
        counts = y.sum(dim=0)
        seen = (y.T @ p) / counts.clamp_min(1e-6)[:, None]
        kept = torch.where(counts > 0, self.options.momentum, 1.0)[:, None]
        self.confusion.copy_(kept * self.confusion + (1 - kept) * seen)


def polarity_distance(taxonomy: Taxonomy) -> Tensor:
    """Return (K, K), 1 where two classes share no name of the coarsest level; all 0 for one level."""
    levels = list(taxonomy.levels)
    if len(levels) < 2:
        return torch.zeros(len(taxonomy), len(taxonomy))
    members = torch.from_numpy(taxonomy.membership(levels[-1])).float()
    return (members @ members.T == 0).float()
