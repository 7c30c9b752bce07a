"""A method that uses all features of the loop: two views, dropout, groups, a sum over photos, hooks with randomness."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import asymmetric_loss_with_logits
from intclip.methods.base import Method, Options, Output, ParameterGroup


class ToyOptions(Options, frozen=True):
    dropout: float = 0.3
    views: int = 2
    diverge: bool = False


class ToyMethod(Method):
    Options = ToyOptions
    options: ToyOptions
    loss_reduction = "sum"

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: ToyOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.views = options.views
        self.hidden = nn.Linear(backbone.embed_dim, 16)
        self.drop = nn.Dropout(options.dropout)
        self.out = nn.Linear(16, len(taxonomy.names))
        self.unused = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(backbone.embed_dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        self.mean.copy_(torch.cat([features["pooled"] for features, _ in batches]).mean(dim=0))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        hidden = self.drop(F.relu(self.hidden(features["pooled"] - self.mean)))
        return Output(self.out(hidden))

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        factor = float("inf") if self.options.diverge else 1
        return {"asl": 0.1 * factor * asymmetric_loss_with_logits(output.logits, targets, reduction="sum")}

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        outputs = [self(view).logits for view in views]
        terms = self.loss(Output(outputs[0]), targets)
        if len(outputs) > 1:
            terms["agree"] = 0.1 * (outputs[0] - outputs[1]).square().sum()
        return terms

    def after_step(self) -> None:
        self.steps += 1

    def after_epoch(self, epoch: int) -> None:
        self.mean += 0.001 * torch.randn_like(self.mean)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [
            ParameterGroup("hidden", list(self.hidden.parameters()), lr_multiplier=0.5),
            ParameterGroup("rest", [*self.out.parameters(), *self.unused.parameters()], weight_decay_multiplier=2),
        ]
