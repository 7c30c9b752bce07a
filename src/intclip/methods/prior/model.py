"""Predicts each label's frequency in the training set for every photo."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Method, Options, Output


class PriorOptions(Options, frozen=True):
    """Options of the prior.

    Attributes:
        pseudo_count: Pseudo-photos, half of them with the label, so that no probability is 0 or 1.
    """

    pseudo_count: float = Field(default=1, gt=0)


class Prior(Method):
    """Constant probabilities, without training.

    Attributes:
        log_odds: Log-odds of each label (K,); for exclusive labels, whose probabilities are the softmax, logarithms
            of the frequencies.
    """

    Options = PriorOptions
    options: PriorOptions
    log_odds: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: PriorOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.register_buffer("log_odds", torch.zeros(len(taxonomy.names)))

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute the mean target of every label, without unknown ones."""
        total = torch.full_like(self.log_odds, self.options.pseudo_count / 2, dtype=torch.float64)
        count = torch.full_like(total, self.options.pseudo_count)
        for _, targets in batches:
            known = ~targets.isnan()
            total += torch.where(known, targets, 0).sum(dim=0)
            count += known.sum(dim=0)
        share = total / count
        self.log_odds.copy_(share.log() if self.taxonomy.exclusive else torch.logit(share))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return the same logits (B, K) for every photo, without maps."""
        return Output(self.log_odds.expand(features["pooled"].shape[0], -1))

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the binary cross-entropy, only for logging."""
        return {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}
