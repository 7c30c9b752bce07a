"""Several methods on one backbone, trained in parallel, with averaged logits."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import ExtraInput, Method, Options, Output, ParameterGroup, without_prefix
from intclip.methods.registry import build_method


class Member(BaseModel, frozen=True, extra="forbid"):
    """One method of the ensemble.

    Attributes:
        method: Its name in the registry.
        options: Its options.
        tower: Image tower whose deep layers it uses and trains, such as "lite2", if the backbone has several; default:
            all.
        weight: Weight of its logits in the mean.
        lr: Multiplier of its learning rates.
    """

    method: str
    options: dict[str, Any] = Field(default_factory=dict)
    tower: str | None = None
    weight: float = Field(default=1.0, gt=0)
    lr: float = Field(default=1.0, gt=0)


class EnsembleOptions(Options, frozen=True):
    """Options of an ensemble.

    Attributes:
        members: At least two members; each has its own random seed.
    """

    members: tuple[Member, ...] = Field(
        default=(Member(method="linear_probe"), Member(method="ridge_probe")), min_length=2
    )


class Ensemble(Method):
    """The weighted mean of several methods' logits.

    Each member is trained by its own loss, all on the same batches, so the backbone runs once for all. The evidence is
    the first member's.
    """

    Options = EnsembleOptions
    options: EnsembleOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: EnsembleOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        towers = dict.fromkeys(each.tower for each in options.members if each.tower is not None)
        views = {name: backbone.tower(name) for name in towers}
        members = [
            build_method(each.method, views.get(each.tower or "", backbone), taxonomy, each.options)
            for each in options.members
        ]
        for member, method in zip(options.members, members, strict=True):
            if member.tower is not None and any(name.startswith("stage") for name in method.needs):
                raise RecipeError(f"{member.method} uses the stage maps of all towers; omit tower {member.tower}")
        self.members = cast("Sequence[Method]", nn.ModuleList(members))
        self.needs: tuple[FeatureName, ...] = tuple(dict.fromkeys(name for each in members for name in each.needs))
        self.extra_inputs: tuple[ExtraInput, ...] = tuple(
            dict.fromkeys(name for each in members for name in each.extra_inputs)
        )
        self.views = max(each.views for each in members)
        reductions = {each.loss_reduction for each in members}
        if len(reductions) > 1:
            raise RecipeError(
                "the losses of an ensemble must all be sums, or all means, over photos: set loss.reduction"
            )
        self.loss_reduction = members[0].loss_reduction

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return mean logits (B, K), with the first member's maps and extras."""
        outputs: list[Output] = [each(features, maps=maps and number == 0) for number, each in enumerate(self.members)]
        weights = [each.weight for each in self.options.members]
        weighted = [weight * output.logits for weight, output in zip(weights, outputs, strict=True)]
        logits = torch.stack(weighted).sum(dim=0) / sum(weights)
        return replace(outputs[0], logits=logits)

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the first member's loss of the mean, only for logging."""
        return self.members[0].loss(output, targets)

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Return every member's terms, except those of members without learnable parameters."""
        return {
            f"{number} {name}": value
            for number, each in enumerate(self.members, start=1)
            if each.learnable_parameters()
            for name, value in each.training_loss(views[: each.views], targets).items()
        }

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Call `prepare` of each member."""
        for each in self.members:
            each.prepare(batches)

    def before_step(self, step: int) -> None:
        """Call `before_step` of each member."""
        for each in self.members:
            each.before_step(step)

    def after_step(self) -> None:
        """Call `after_step` of each member."""
        for each in self.members:
            each.after_step()

    def after_epoch(self, epoch: int) -> None:
        """Call `after_epoch` of each member."""
        for each in self.members:
            each.after_epoch(epoch)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameter groups of each member, named after it."""
        return [
            replace(group, name=f"{number} {group.name}", lr_multiplier=member.lr * group.lr_multiplier)
            for number, (member, each) in enumerate(zip(self.options.members, self.members, strict=True), start=1)
            for group in each.parameter_groups()
            if group.parameters
        ]

    def own_state(self) -> dict[str, Tensor]:
        """Return the members' states, without the shared backbone."""
        return {
            f"members.{number}.{key}": value
            for number, each in enumerate(self.members)
            for key, value in each.own_state().items()
        }

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Call `resize_to` of each member."""
        for number, each in enumerate(self.members):
            each.resize_to(without_prefix(state, f"members.{number}."))
