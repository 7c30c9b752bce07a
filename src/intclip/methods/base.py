"""The contract between a method, the training loop and the predictor.

A method names the backbone features it `needs`, maps them to logits (B, K), and returns its loss as named terms, so
the loop is independent of the loss and the predictor of the architecture. The backbone is frozen and shared. A method
owns everything that it trains, so a bundle stores only `own_state()`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.errors import IntclipError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.loss_options import LossOptions
from intclip.methods.post_text import TEXT_READERS


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, and others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Options(BaseModel, frozen=True, extra="forbid"):
    """Base of every method's options: the `method.options` section of a recipe."""


class ClassifierOptions(Options, frozen=True):
    """Base of the options of a `Classifier`.

    Attributes:
        loss: The classification loss.
    """

    loss: LossOptions = LossOptions()


ExtraInput = Literal["mask", "text", "words"]
"""Additional inputs of a photo, as entries of its features, if the dataset has them:

mask: its objects, (1, S, S) in [0, 1], transformed like the view, NaN if unknown; training only. text: embedding of its
text by the backbone's text tower, (D,), with norm √D; 0 if there is none. words: embeddings of the text and of its
single words, (L, D), with norm √D, padded with rows of 0.
"""

Channel = Literal["image", "text"]
"""Channel of a post: photo or text."""
WordUnit = Literal["log-odds", "cosine"]


@dataclass
class Output:
    """Output of a method for a batch.

    Attributes:
        logits: (B, K); `sigmoid(logits)` are the probabilities (`softmax` for single-label tasks).
        maps: Evidence, region logits by name ("sight", "semantic", "fused", …), each (B, K, H, W). Only filled when
            `forward` is called with `maps=True`.
        extras: Additional tensors for the method's loss or evidence.
    """

    logits: Tensor
    maps: dict[str, Tensor] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class ParameterGroup:
    """Parameters that share a learning-rate multiplier and a weight decay multiplier."""

    name: str
    parameters: list[nn.Parameter]
    lr_multiplier: float = 1.0
    weight_decay_multiplier: float = 1.0


class Method(nn.Module, ABC):
    """A classifier of K labels over a frozen backbone's features, built from (backbone, taxonomy, options).

    Args:
        backbone: The frozen backbone whose features it reads.
        taxonomy: The K labels.
        options: Validated; of the class `Options`.

    Attributes:
        Options: The class of its options; the registry validates a recipe's `method.options` with it.
        needs: Backbone features that `forward` reads; an instance may set its own, by its options.
        extra_inputs: Additional inputs, if the dataset has them; photos alone must suffice, in training and later.
        views: Number of augmented views of a photo per training step.
        loss_reduction: How `loss` reduces over the photos of a batch: "sum" (ASL as published) or "mean". The loop
            needs it to weight parts of a batch that are on several processes or processed in sequence.
        backbone: The frozen backbone; never trained, never stored with the method.
        taxonomy: The K labels.
        options: Its options.
        temperature: Divides a trained model's logits before they become probabilities; `intclip calibrate` fits it.
            Training and losses do not use it.
    """

    Options: ClassVar[type[Options]]
    temperature: float = 1.0
    needs: tuple[FeatureName, ...] = ("pooled",)
    extra_inputs: tuple[ExtraInput, ...] = ()
    views: int = 1
    loss_reduction: Literal["sum", "mean"] = "mean"

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: BaseModel) -> None:
        super().__init__()
        self.backbone = backbone
        self.taxonomy = taxonomy
        self.options = options

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Channels used at inference."""
        return ("image", "text") if any(name in TEXT_READERS for name in self.extra_inputs) else ("image",)

    @property
    def alone(self) -> tuple[Channel, ...]:
        """Return the channels that suffice without the other."""
        return ("image",)

    @property
    def text_backbone(self) -> Backbone:
        """Return the backbone whose text tower `read_texts` uses; its own by default."""
        return self.backbone

    def read_texts(self, texts: Sequence[str | None]) -> Features:
        """Return the inputs of `forward` from the texts of posts, as additional entries of the features.

        Args:
            texts: One per post; None or blank for a post without text, unless text is one of the `alone` channels.
        """
        found = {name: read(texts, self.backbone) for name, read in TEXT_READERS.items() if name in self.extra_inputs}
        return {name: rows for name, rows in found.items() if rows is not None}

    @property
    def word_unit(self) -> WordUnit | None:
        """Kind of `word_scores`; None if the method cannot use text alone."""
        return None

    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Score texts alone for each label (T, K), in `word_unit`.

        Raises:
            IntclipError: `word_unit` is None.
        """
        raise IntclipError(f"{type(self).__name__} cannot use text alone")

    @abstractmethod
    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Compute logits of a batch of features, and with `maps` the region logits."""

    @abstractmethod
    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Named loss terms, already weighted; the loop minimises their sum.

        Args:
            output: Result of `forward`.
            targets: (B, K) in [0, 1]; NaN where a label is unknown.
        """

    def weighed(self, mean: Tensor, photos: int) -> Tensor:
        """Scale a mean over a batch's photos to be comparable with losses that are summed over them."""
        return mean * photos if self.loss_reduction == "sum" else mean

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Loss terms of one training step; override to use several views (`views` of them arrive)."""
        return self.loss(self(views[0]), targets)

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute statistics of the training set before training, such as prototypes, in one or several passes.

        Args:
            batches: (features, targets) of the training split, un-augmented; it can be iterated several times.
        """

    def before_step(self, step: int) -> None:
        """Called before each optimiser step with its number, counted from 0 over the whole run."""

    def after_step(self) -> None:
        """Called after each optimiser step."""

    def after_epoch(self, epoch: int) -> None:
        """Called after each training epoch, counted from 1."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return learnable parameters in groups; by default one group."""
        return [ParameterGroup("all", self.learnable_parameters())]

    def learnable_parameters(self) -> list[nn.Parameter]:
        """Return all trainable parameters."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def own_state(self) -> dict[str, Tensor]:
        """Return the state dict without the backbone, as stored in a bundle."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("backbone.")}

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Resize tensors whose sizes depend on the training photos to those of a state; the default does nothing.

        Args:
            state: From `own_state`, not yet validated.
        """

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load `own_state`, strictly.

        Raises:
            KeyError: Tensors are missing or unexpected; all are named.
            ValueError: A tensor has another shape.
        """
        self.resize_to(state)
        own = self.own_state()
        if missing := sorted(own.keys() - state.keys()):
            raise KeyError(f"missing tensors: {', '.join(missing)}")
        if extra := sorted(state.keys() - own.keys()):
            raise KeyError(f"unexpected tensors: {', '.join(extra)}")
        if wrong := [key for key in own if own[key].shape != state[key].shape]:
            shapes = ", ".join(f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}" for key in wrong)
            raise ValueError(f"wrong shapes: {shapes}")
        self.load_state_dict(state, strict=False)


class Classifier(Method):
    """A method whose options have a classification loss, which is its own loss by default."""

    Options = ClassifierOptions
    options: ClassifierOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: ClassifierOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.loss_reduction = options.loss.over_photos

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """The classification loss."""
        return {"classification": self.options.loss(output.logits, targets)}


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names have this prefix, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
