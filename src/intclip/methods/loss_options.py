"""Options of the classification loss, shared by all methods that have one."""

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from intclip.losses import asymmetric_loss_with_logits, soft_cross_entropy


class LossOptions(BaseModel, frozen=True, extra="forbid"):
    """Loss of logits (B, K) against targets (B, K).

    Attributes:
        kind: "asl" (asymmetric), "bce" (binary cross-entropy), or "softmax" (cross-entropy, for single-label tasks).
        gamma_pos: Focusing parameter of positives (asl).
        gamma_neg: Focusing parameter of negatives (asl).
        margin: Probability below which negatives have no loss (asl).
        reduction: "sum" over the batch (the paper), "batch" (sum over classes, mean over the batch) or "mean".
        scale: Factor on the loss; 0.03 with "sum" in the released code.
        harden: Targets at or above this become 1, others 0; None keeps soft targets.
        smoothing: Fraction by which targets move towards 1/2.
    """

    kind: Literal["asl", "bce", "softmax"] = "asl"
    gamma_pos: float = Field(default=1, ge=0)
    gamma_neg: float = Field(default=2, ge=0)
    margin: float = Field(default=0.05, ge=0, lt=1)
    reduction: Literal["sum", "batch", "mean"] = "sum"
    scale: float = Field(default=1, gt=0)
    harden: float | None = Field(default=None, gt=0, le=1)
    smoothing: float = Field(default=0, ge=0, lt=1)

    @property
    def over_photos(self) -> Literal["sum", "mean"]:
        """Return the loss's reduction over photos, for `Method.loss_reduction`."""
        return "sum" if self.reduction == "sum" else "mean"

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the scaled loss, a scalar."""
        if self.harden is not None:
            targets = torch.where(targets.isnan(), targets, (targets >= self.harden).to(logits.dtype))
        if self.smoothing:
            targets = targets + self.smoothing * (0.5 - targets)
        if self.kind == "softmax":
            return self.scale * soft_cross_entropy(logits, targets, reduction=self.reduction)
        is_asl = self.kind == "asl"
        return self.scale * asymmetric_loss_with_logits(
            logits,
            targets,
            gamma_pos=self.gamma_pos if is_asl else 0,
            gamma_neg=self.gamma_neg if is_asl else 0,
            margin=self.margin if is_asl else 0,
            reduction=self.reduction,
        )
