"""Options of MCCL."""

from typing import Literal

from pydantic import BaseModel, Field, field_validator

from intclip.methods.base import ClassifierOptions
from intclip.methods.label_graph import GraphOptions
from intclip.methods.loss_options import LossOptions
from intclip.methods.prototypes import Update
from intclip.methods.query_decoder import DecoderOptions

Gates = Literal["none", "learned", "photo"]
Composition = Literal["replace", "add", "none"]


class PoolOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of a stage's pool of prototypes.

    Attributes:
        prototypes: P per stage, over all classes; at least K.
        rarity: A class with n_c samples gets prototypes in proportion to n_c^−rarity; 0 for equal numbers.
        initial: "classes" clusters the patches of each class, "random" uses random directions.
        patches: Maximum number of patches to cluster per class.
        temperature: τ of the softmax over cosines.
        momentum: λ of Eq. 5.
        update: Update of prototypes in training.
        composition: Replace a patch by its composition, add it, or disable composition ("none").
        collapse: Warn about a collapse if fewer than this share of P are in effective use.
    """

    prototypes: int = Field(default=256, gt=0)
    rarity: float = 1.0
    initial: Literal["classes", "random"] = "classes"
    patches: int = Field(default=1024, gt=0)
    temperature: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.999, ge=0, le=1)
    update: Update = "momentum"
    composition: Composition = "replace"
    collapse: float = Field(default=0.1, ge=0, le=1)


class McclOptions(ClassifierOptions, frozen=True):
    """Options of MCCL. Unpublished settings have our values; see README.md.

    Attributes:
        stages: Stages of the backbone, fine to coarse; according to the authors, 1 and 2 hurt.
        train: "deep" trains a copy of the deep layers, which gives the last stage.
        gates: Weights of stages: equal, learned, or predicted for each photo.
        pool: The prototypes.
        sentence_form: Form of the labels' text.
        text_encoder: Text encoder: "backbone", another backbone's name such as "lite", or "random" for random
            vectors.
        graph: The label graph.
        graph_layers: Number of graph convolutions; 0 projects each label separately.
        decoder: The query decoder; its `dim` must be set.
        loss: The classification loss.
        deep_lr: Multiplier of the learning rate for the deep layers.
    """

    stages: tuple[int, ...] = (3, 4)
    train: Literal["none", "deep"] = "deep"
    gates: Gates = "none"
    pool: PoolOptions = PoolOptions()
    sentence_form: str = "11-15"
    text_encoder: str = "backbone"
    graph: GraphOptions = GraphOptions()
    graph_layers: int = Field(default=2, ge=0)
    decoder: DecoderOptions = DecoderOptions(dim=256, feedforward=1024)
    loss: LossOptions = LossOptions(gamma_pos=0, gamma_neg=2, margin=0, reduction="batch")
    deep_lr: float = Field(default=0.1, gt=0)

    @field_validator("stages")
    @classmethod
    def _stages(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)) or not set(value) <= {1, 2, 3, 4}:
            raise ValueError("choose some of the stages 1, 2, 3, 4, in this order")
        return value

    @field_validator("decoder")
    @classmethod
    def _width(cls, value: DecoderOptions) -> DecoderOptions:
        if value.dim is None:
            raise ValueError("set decoder.dim, which stages of different widths need")
        return value
