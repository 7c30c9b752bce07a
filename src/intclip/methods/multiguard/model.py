"""MultiGuard: trains any method on noisy photos, so that its votes under noise can be certified.

Jia, Qu, Gong: MultiGuard: Provably Robust Multi-label Classification against Adversarial Examples, NeurIPS 2022.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Options, Output, ParameterGroup, without_prefix
from intclip.methods.multiguard.smoothing import add_noise
from intclip.methods.registry import build_method


class MultiguardOptions(Options, frozen=True):
    """Options of MultiGuard.

    Attributes:
        method: The wrapped method; the authors use a plain network with asymmetric loss.
        options: Its options.
        sigma: Standard deviation of the noise in training, for pixel values in [0, 1].
        samples: Number of noisy copies whose mean probability is used in evaluation, with the same noise for every
            photo; 0 scores the photo without noise.
    """

    method: str = "asl_resnet"
    options: dict[str, Any] = Field(default_factory=dict)
    sigma: float = Field(default=0.5, gt=0)
    samples: int = Field(default=0, ge=0)


class MultiGuard(Method):
    """A method under noise. Noise is added before the backbone, so it needs pixels, and features cannot be cached."""

    Options = MultiguardOptions
    options: MultiguardOptions
    needs = ("pixels",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: MultiguardOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        if options.method.replace("-", "_") == "multiguard":
            raise RecipeError("multiguard cannot wrap itself; name another method")
        self.inner = build_method(options.method, backbone, taxonomy, options.options)
        self.loss_reduction = self.inner.loss_reduction
        self.views, self.extra_inputs = self.inner.views, self.inner.extra_inputs

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return the wrapped method's output without noise; with `samples`, the mean probability of noisy copies."""
        pixels = features["pixels"]
        output: Output = self.inner(self._read(features, pixels), maps=maps)
        if self.training or not self.options.samples:
            return output
        generator = torch.Generator().manual_seed(0)
        total = torch.zeros_like(output.logits)
        for _ in range(self.options.samples):
            noise = torch.randn(pixels.shape[1:], generator=generator).to(pixels)
            logits = self.inner(self._read(features, self._noisy(pixels, noise))).logits
            total += logits.softmax(dim=1) if self.taxonomy.exclusive else logits.sigmoid()
        mean = total / self.options.samples
        output.logits = mean.clamp_min(1e-6).log() if self.taxonomy.exclusive else torch.logit(mean, eps=1e-6)
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the loss of the wrapped method."""
        return self.inner.loss(output, targets)

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Return the training loss of the wrapped method, with independent noise per photo."""
        noisy = [self._noisy(view["pixels"], torch.randn_like(view["pixels"])) for view in views]
        read = [self._read(view, pixels) for view, pixels in zip(views, noisy, strict=True)]
        return self.inner.training_loss(read, targets)

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Call `prepare` of the wrapped method, on photos without noise."""
        self.inner.prepare(_Read(self, batches))

    def before_step(self, step: int) -> None:
        """Call `before_step` of the wrapped method."""
        self.inner.before_step(step)

    def after_step(self) -> None:
        """Call `after_step` of the wrapped method."""
        self.inner.after_step()

    def after_epoch(self, epoch: int) -> None:
        """Call `after_epoch` of the wrapped method."""
        self.inner.after_epoch(epoch)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameter groups of the wrapped method."""
        return self.inner.parameter_groups()

    def own_state(self) -> dict[str, Tensor]:
        """Return the wrapped method's state, without the shared backbone."""
        return {f"inner.{key}": value for key, value in self.inner.own_state().items()}

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Call `resize_to` of the wrapped method."""
        self.inner.resize_to(without_prefix(state, "inner."))

    def _read(self, features: Features, pixels: Tensor) -> Features:
        """Compute the wrapped method's features from these pixels; keep the additional inputs."""
        extra = {name: features[name] for name in self.extra_inputs if name in features}
        return self.backbone.features(pixels, self.inner.needs) | extra

    def _noisy(self, pixels: Tensor, noise: Tensor) -> Tensor:
        return add_noise(pixels, noise, self.backbone.preprocess, self.options.sigma)


@dataclass(frozen=True)
class _Read:
    """Converts batches of pixels to the wrapped method's features, at every iteration."""

    method: MultiGuard
    batches: Iterable[tuple[Features, Tensor]]

    def __iter__(self) -> Iterator[tuple[Features, Tensor]]:
        for features, targets in self.batches:
            yield self.method._read(features, features["pixels"]), targets
