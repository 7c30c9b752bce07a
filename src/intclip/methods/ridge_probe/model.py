"""Ridge regression on the roots of mean features, with calibrated logits; it is solved, not trained."""

from collections.abc import Iterable

import torch
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Options, Output
from intclip.methods.loss_options import LossOptions
from intclip.methods.ridge_probe.solver import fit_logits, fit_ridge


class RidgeProbeOptions(Options, frozen=True):
    """Options of the ridge probe.

    Attributes:
        penalties: To choose from, as multiples of the number of training photos.
        loss: What is reported as its loss; nothing is trained by it.
    """

    penalties: tuple[float, ...] = Field(default=(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), min_length=1)
    loss: LossOptions = LossOptions(kind="bce", reduction="batch")


class RidgeProbe(Method):
    """A linear reading of the last feature map's mean and, where the trunk ends in a map, of the trunk's."""

    Options = RidgeProbeOptions
    needs = ("trunk",)

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: RidgeProbeOptions) -> None:
        super().__init__(backbone, taxonomy)
        self.options = options
        self.loss_reduction = options.loss.over_photos
        labels = len(taxonomy.names)
        with torch.no_grad():
            side, device = backbone.image_size, next(backbone.parameters()).device
            pixels = torch.zeros(1, 3, side, side, device=device)
            width = self._vectors(backbone.features(pixels, self.needs)).shape[1]
        for name, shape in (("mean", (width,)), ("std", (width,)), ("weight", (width, labels)), ("bias", (labels,))):
            self.register_buffer(name, torch.ones(shape) if name == "std" else torch.zeros(shape))

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Solve it; an unknown target counts as the label's mean."""
        pairs = [(self._vectors(features), targets) for features, targets in batches]
        vectors, targets = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        targets = torch.where(targets.isnan(), targets.nanmean(dim=0).nan_to_num(), targets)
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp_min(1e-6))
        found = fit_ridge(
            (vectors - self.mean) / self.std, targets, [len(vectors) * each for each in self.options.penalties]
        )
        slope, offset = fit_logits(found.left_out, targets, exclusive=self.taxonomy.exclusive)
        slope, offset = slope.to(found.weight.device), offset.to(found.weight.device)
        self.weight.copy_(found.weight * slope)
        self.bias.copy_(found.bias * slope + offset)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Logits (B, K); it has no maps."""
        return Output((self._vectors(features) - self.mean) / self.std @ self.weight + self.bias)

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """The classification loss, for the logs."""
        return {"classification": self.options.loss(output.logits, targets)}

    def _vectors(self, features: Features) -> Tensor:
        """Signed roots (B, P) of mean features: like the root in `lite`'s head, they let faint evidence count."""
        trunk = features["trunk"]
        maps = [self.backbone.deep_map(self.backbone.deep(trunk))]
        if trunk.ndim == 4:
            maps.append(trunk)
        means = torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1)
        # Above 0, so that the slope is finite where a channel is silent.
        return means.sign() * means.abs().clamp_min(1e-12).sqrt()
