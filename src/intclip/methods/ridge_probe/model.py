"""Ridge regression on square roots of mean features, solved in closed form, with calibrated logits."""

from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, at_least_float32
from intclip.methods.loss_options import LossOptions
from intclip.methods.ridge_probe.solver import fit_logits, fit_nystrom, fit_ridge


class RidgeProbeOptions(ClassifierOptions, frozen=True):
    """Options of the ridge probe.

    Attributes:
        vector: Input vector: "stages", square roots of mean features, or "pooled", the unit embedding, which texts can
            replace (`data.texts_as_images`).
        penalties: Candidate strengths λ; for the linear model in multiples of the number of training photos, for the
            kernel absolute.
        landmarks: Maximum number of training photos as landmarks of a Gaussian kernel (Nyström's method; exact with all
            photos); 0 for a linear model.
        width: Width of the kernel: its exponent at the median squared distance between photos.
        loss: Reported loss; not used for fitting.
    """

    vector: Literal["stages", "pooled"] = "stages"
    penalties: tuple[float, ...] = Field(default=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), min_length=1)
    landmarks: int = Field(default=0, ge=0)
    width: float = Field(default=2.0, gt=0)
    loss: LossOptions = LossOptions(kind="bce", reduction="batch")


class RidgeProbe(Classifier):
    """Linear or kernel ridge regression on means of the last feature map and, if it is a map, the trunk's output."""

    Options = RidgeProbeOptions
    options: RidgeProbeOptions
    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor
    landmarks: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: RidgeProbeOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = ("trunk",) if options.vector == "stages" else ("pooled",)
        labels = len(taxonomy.names)
        with torch.no_grad():
            side, device = backbone.image_size, next(backbone.parameters()).device
            pixels = torch.zeros(1, 3, side, side, device=device)
            width = self._vectors(backbone.features(pixels, self.needs)).shape[1]
        rows = options.landmarks or width
        for name, shape in (("mean", (width,)), ("std", (width,)), ("weight", (rows, labels)), ("bias", (labels,))):
            self.register_buffer(name, torch.ones(shape) if name == "std" else torch.zeros(shape))
        if options.landmarks:
            self.register_buffer("landmarks", torch.zeros(rows, width))
            self.register_buffer("spread", torch.ones(()))

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Fit the regression; unknown targets are replaced by the label's mean."""
        pairs = [(self._vectors(features), targets) for features, targets in batches]
        vectors, targets = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
        targets = torch.where(targets.isnan(), targets.nanmean(dim=0).nan_to_num(), targets)
        self.mean.copy_(vectors.mean(dim=0))
        self.std.copy_(vectors.std(dim=0, correction=0).clamp_min(1e-6))
        vectors = (vectors - self.mean) / self.std
        if self.options.landmarks:
            self._choose_landmarks(vectors)
            kernel = fit_nystrom(self._kernel(vectors), self._kernel(self.landmarks), targets, self.options.penalties)
            found, weight, bias = kernel.ridge, kernel.weight, kernel.bias
        else:
            found = fit_ridge(vectors, targets, [len(vectors) * each for each in self.options.penalties])
            weight, bias = found.weight, found.bias
        slope, offset = fit_logits(found.left_out, targets, exclusive=self.taxonomy.exclusive)
        slope, offset = slope.to(weight.device), offset.to(weight.device)
        self.weight.copy_(weight * slope)
        self.bias.copy_(bias * slope + offset)

    def _choose_landmarks(self, vectors: Tensor) -> None:
        """Sample photos without replacement, or return all if there are not more."""
        order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(0)).to(vectors.device)
        rows = order[: self.options.landmarks]
        self._resize(len(rows))
        self.landmarks.copy_(vectors[rows])
        distances = _squared_distances(self.landmarks, self.landmarks)
        self.spread.copy_(distances[distances > 1e-3 * distances.max()].median() / self.options.width)

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Resize to the state's number of landmarks."""
        if self.options.landmarks and "landmarks" in state:
            self._resize(len(state["landmarks"]))

    def _resize(self, count: int) -> None:
        self.landmarks = self.landmarks.new_zeros(count, self.landmarks.shape[1])
        self.weight = self.weight.new_zeros(count, self.weight.shape[1])

    def _kernel(self, vectors: Tensor) -> Tensor:
        """Return similarities (B, M) in (0, 1] of vectors (B, P) to the landmarks."""
        return torch.exp(-_squared_distances(vectors, self.landmarks) / self.spread)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K), without maps."""
        vectors = (at_least_float32(self._vectors(features)) - self.mean) / self.std
        # Distances are small differences of large numbers, and the weights are large: 8 bits are too few.
        with torch.autocast(vectors.device.type, enabled=False):
            return Output((self._kernel(vectors) if self.options.landmarks else vectors) @ self.weight + self.bias)

    def _vectors(self, features: Features) -> Tensor:
        """Return unit embeddings (B, D), or signed roots (B, P) of mean features, which emphasise small activations."""
        if self.options.vector == "pooled":
            return F.normalize(features["pooled"], dim=1)
        trunk = features["trunk"]
        maps = [self.backbone.deep_map(self.backbone.deep(trunk))]
        if trunk.ndim == 4:
            maps.append(trunk)
        means = torch.cat([each.mean(dim=(2, 3)) for each in maps], dim=1)
        # Above 0, so that the gradient is finite at 0.
        return means.sign() * means.abs().clamp_min(1e-12).sqrt()


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return squared distances (B, M) of rows (B, P) and (M, P)."""
    inner = first @ second.T
    return (first.square().sum(dim=1, keepdim=True) + second.square().sum(dim=1) - 2 * inner).clamp_min(0)
