"""Hierarchical consistency: the taxonomy's parents have their own prompts and must agree with their children.

For every level above the classes, p_k are the classes' probabilities, P_g those of the parents' own prompts
(sigmoids of logits, or for exclusive labels their softmax over a level), and lift is the taxonomy's rule
(`Taxonomy.lift`):

    parents      loss(P_g, lift(y)_g)                the classification loss on the level's own targets
    consistency  Σ_g (P_g − lift(p)_g)²              no targets needed

The parents' prompts are used only in training, at no cost for inference. Not in the IntCLIP paper; HLEG (Shi et al.)
instead predicts the levels in sequence.
"""

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.errors import RecipeError
from intclip.labels.taxonomy import LiftRule, Taxonomy
from intclip.losses import Reduction
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import PromptLearner, PromptOptions
from intclip.methods.region_pooling import PoolingOptions, RegionPooling


class HierarchyOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of the hierarchy's losses.

    Attributes:
        rule: Rule for a parent's probability from its children's, see `Taxonomy.lift`; "sum" suits exclusive labels.
        parents: Weight of the parents' classification loss.
        consistency: Weight of the consistency loss.
    """

    rule: LiftRule = "max"
    parents: float = Field(default=0.5, ge=0)
    consistency: float = Field(default=1, gt=0)


class Hierarchy(nn.Module):
    """Prompts of the parents of all levels, concatenated (P in total), and their losses.

    Args:
        text: Text tower for the prompts; not stored.
        taxonomy: Has a level above its classes.
        options: Rule and weights.
        pooling: Pooling of region similarities to the parents' logits, as for the classes.
        context_length: Number of context vectors of a parent's prompt; they are class-specific.

    Raises:
        RecipeError: The taxonomy has only one level.
    """

    membership: Tensor

    def __init__(
        self,
        text: TextTower,
        taxonomy: Taxonomy,
        options: HierarchyOptions,
        pooling: PoolingOptions,
        *,
        context_length: int,
    ) -> None:
        super().__init__()
        levels = list(taxonomy.levels)[1:]
        if not levels:
            raise RecipeError(
                f"option hierarchy needs a taxonomy with parents, and {taxonomy.name} has one level; leave it null"
            )
        self.options, self.exclusive = options, taxonomy.exclusive
        self.sizes = [len(taxonomy.levels[level]) for level in levels]
        self.names = [name for level in levels for name in taxonomy.levels[level]]
        self.prompts = PromptLearner(text, self.names, PromptOptions(context_length=context_length))
        self.pooling = RegionPooling(pooling, len(self.names))
        parts = [torch.from_numpy(taxonomy.membership(level)) for level in levels]
        self.register_buffer("membership", torch.cat(parts, dim=1).to(self.prompts.start.device), persistent=False)

    def forward(self, text: TextTower, regions: Tensor) -> Tensor:
        """Return the parents' logits (B, P) from region features (B, D, H, W)."""
        logits: Tensor = self.pooling(regions, self.prompts(text))
        return logits

    def losses(self, children: Tensor, parents: Tensor, targets: Tensor, loss: LossOptions) -> dict[str, Tensor]:
        """Return the weighted terms "consistency" and, if it has weight, "parents".

        Args:
            children: Logits (B, K).
            parents: Logits (B, P).
            targets: (B, K), NaN where unknown.
            loss: The classification loss; its reduction and scale apply to the consistency too.
        """
        lifted = self._probabilities(children, [children.shape[1]])
        difference = self._probabilities(parents, self.sizes) - lift(lifted, self.membership, self.options.rule)
        squares = reduce(difference.square(), loss.reduction)
        terms = {"consistency": self.options.consistency * loss.scale * squares}
        if self.options.parents:
            above = lift(targets, self.membership, self.options.rule)
            terms["parents"] = self.options.parents * loss(parents, above)
        return terms

    def _probabilities(self, logits: Tensor, sizes: list[int]) -> Tensor:
        """Convert logits of concatenated levels, with these numbers of columns, to probabilities."""
        if not self.exclusive:
            return logits.sigmoid()
        return torch.cat([level.softmax(dim=1) for level in torch.split(logits, sizes, dim=1)], dim=1)


def lift(probabilities: Tensor, membership: Tensor, rule: LiftRule) -> Tensor:
    """Compute `Taxonomy.lift` (B, P) of probabilities or targets (B, K), differentiably.

    Args:
        probabilities: In [0, 1]; an unknown child (NaN) makes its parent unknown, unless another is certain (1).
        membership: (K, P), True if the class is below the parent.
        rule: "max", "noisy-or" or "sum".
    """
    children = torch.where(membership, probabilities.unsqueeze(2), 0)
    if rule == "max":
        lifted = children.amax(dim=1)
    elif rule == "noisy-or":
        lifted = 1 - (1 - children).prod(dim=1)
    else:
        lifted = children.sum(dim=1).clamp(max=1)
    return torch.where((children == 1).any(dim=1), 1.0, lifted)


def reduce(values: Tensor, reduction: Reduction) -> Tensor:
    """Reduce values (B, P) like a loss; see `intclip.losses.Reduction`."""
    if reduction == "sum":
        return values.sum()
    return values.mean() if reduction == "mean" else values.sum() / len(values)
