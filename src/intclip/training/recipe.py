"""What a training run is: a validated recipe. Every default stands in `recipes/defaults.yaml` and nowhere else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from intclip.data.transforms import AugmentConfig
from intclip.methods.registry import method_options
from intclip.training.recipe_file import RECIPES, nearest_hint, read_recipe
from intclip.training.schedule import ScheduleName, ScheduleUnit


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of a recipe's sections: complete, immutable, no unknown key, no number without end."""


class DataSection(Section, frozen=True):
    """Where the photos and labels come from.

    Attributes:
        name: A dataset that `load_dataset` knows.
        root: Its folder or file; None where the dataset needs none.
        taxonomy: Name or file of a taxonomy of the same classes, for other sentences; None keeps the dataset's own.
        train: Split to train on.
        val: Split for selection and thresholds; None, or a split that is not there, sets `holdout` of `train` aside.
        test: Split that is scored once, at the end; None for none.
        holdout: Share of the training photos set aside when there is no validation split, in (0, 1).
        positive_share: A target at or above it is a yes; None keeps the dataset's own.
        soft_targets: Train on shares of votes as they are; without it on yes and no.
        texts_as_images: Train on the texts of the training split in place of its photos; validation and test stay
            photos. For methods that read `pooled` and `regions` alone.
        masks: Object masks of the training photos, for methods that read them: a folder of `ID.png`, or Intentonomy's
            `coco_maskrcnn.json`; None for none.
        limit: Use only the first so many photos of every split (a quick try); None for all.
        options: Further arguments of `load_dataset`.
    """

    name: str
    root: str | None
    taxonomy: str | None
    train: str
    val: str | None
    test: str | None
    holdout: float = Field(gt=0, lt=1)
    positive_share: float | None = Field(gt=0, le=1)
    soft_targets: bool
    texts_as_images: bool
    masks: str | None
    limit: int | None = Field(ge=1)
    options: dict[str, Any]


class BackboneSection(Section, frozen=True):
    """The frozen image and text towers.

    Attributes:
        name: Registry name, such as "lite", "RN101" or "ViT-B/32".
        checkpoint: Weights file or folder, or "hf:owner/name"; None takes the registry's own.
        activation: Of the transformers' MLPs, where no file beside the weights has it: "gelu" for most of LAION's.
        split: Where trunk and deep layers part: "paper" or "released".
        size: Side of the square input in pixels, where the tower takes others than its own ("lite": multiples of 32).
        normalize: Subtract the mean and divide by the deviation of the pretraining; the released IntCLIP does not.
        crop: "center" or "squash" (both sides resized, nothing cut off); None keeps the backbone's own.
        interpolation: "bicubic" or "bilinear"; None keeps the backbone's own.
        engine: What computes frozen features: "auto" is OpenVINO on a CPU where it is installed, else torch.
    """

    name: str
    checkpoint: str | None
    activation: Literal["quick_gelu", "gelu", "gelu_tanh", "relu"] | None = None
    split: Literal["paper", "released"]
    size: int | None = Field(ge=1)
    normalize: bool
    crop: Literal["center", "squash"] | None
    interpolation: Literal["bicubic", "bilinear"] | None
    engine: Literal["auto", "torch", "openvino", "onnx"]


class MethodSection(Section, frozen=True):
    """What is trained.

    Attributes:
        name: Registry name of the method.
        options: The method's own; see its `Options`.
    """

    name: str
    options: dict[str, Any]


class CacheSection(Section, frozen=True):
    """Features kept on disk, so that the frozen layers run once per photo and not once per epoch.

    Attributes:
        path: "auto" keeps them in the user's cache folder where the method allows it, "off" computes them at every
            step; anything else is a folder.
        views: Augmented views kept per photo, which the epochs take in turn, whether they are cached or not; 0 makes
            new views in every epoch, which cannot be cached.
        dtype: Number format of the training split's features on disk; scored splits are kept in float32.
    """

    path: str
    views: int = Field(ge=0)
    dtype: Literal["float16", "float32"]

    @field_validator("path", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        return {False: "off", True: "auto"}[value] if isinstance(value, bool) else value  # YAML reads `off` as false


_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimSection(Section, frozen=True):
    """The optimiser.

    Attributes:
        name: "sgd", "adam" or "adamw".
        lr: Learning rate of a group with multiplier 1.
        momentum: SGD's; a one-cycle schedule sets its own.
        betas: Decay of Adam's two moments, in [0, 1); a one-cycle schedule sets the first.
        eps: Adam's ε, added to the root of the second moment.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        decay_vectors: Decay biases, scales of norms and other parameters of one dimension too.
        multipliers: Parameter group to its learning-rate multiplier, from 0 on; groups not named keep the method's own.
        clip_norm: Largest norm of the whole gradient; None does not clip.
        ema: Decay of the moving average of the weights, in [0, 1); None keeps none. With one, validation scores both
            the average and the raw weights, and the better is kept.
    """

    name: Literal["sgd", "adam", "adamw"]
    lr: float = Field(gt=0)
    momentum: float = Field(ge=0, lt=1)
    betas: tuple[_Decay, _Decay]
    eps: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    decay_vectors: bool
    multipliers: dict[str, Annotated[float, Field(ge=0)]]
    clip_norm: float | None = Field(gt=0)
    ema: float | None = Field(ge=0, lt=1)


class ScheduleSection(Section, frozen=True):
    """The learning rate over the run; see `schedule.learning_rate`.

    Attributes:
        name: "cosine", "constant" or "onecycle".
        unit: Whether the rate changes with every "step" or "epoch".
        epochs: Epochs that the schedule is made for.
        stop_after: Epochs after which the run ends all the same; None trains through the schedule.
        warmup_epochs: Epochs in which the rate rises.
        warmup_lr: Rate at the start of the warm-up.
    """

    name: ScheduleName
    unit: ScheduleUnit
    epochs: int = Field(ge=1)
    stop_after: int | None = Field(ge=1)
    warmup_epochs: float = Field(ge=0)
    warmup_lr: float = Field(ge=0)

    @property
    def epochs_run(self) -> int:
        """Epochs that the run takes."""
        return min(self.epochs, self.stop_after or self.epochs)

    @model_validator(mode="after")
    def _warm_up_fits(self) -> "ScheduleSection":
        if self.warmup_epochs and self.warmup_epochs >= self.epochs > 1:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        return self


class TrainSection(Section, frozen=True):
    """How the loop runs.

    Attributes:
        batch_size: Photos of one optimiser step, over all processes.
        eval_batch_size: Photos scored at once by one process.
        mixup: α of Beta(α, α), of which the share is drawn that each photo's features and targets keep when they are
            mixed with another photo's; 0 does not mix. Pairs lie within one process's part of a batch.
        accumulate: Pieces into which a process's share of a batch is cut, to save memory; the result is the same.
        seed: Decides initial weights, order, augmentation and dropout.
        precision: "auto" is bf16 on a GPU that has it, else fp32; "fp16" has no gradient scaler, as the released code.
        matmul: torch's float32 matmul precision in a training step, forward and backward: "high" and "medium" round the
            factors of float32 products of matrices where the hardware is faster for it (TF32 on a GPU, bf16 on a CPU
            with AMX) and change nothing elsewhere. Scoring is exact in any case.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        workers: Threads that decode photos.
        log_every: Steps between log lines.
        checkpoint_every: Steps between checkpoints within an epoch; None checkpoints after epochs only.
        tensorboard: Also write TensorBoard events.
        store: Element type of the floats in the bundle; float16 halves it.
    """

    batch_size: int = Field(ge=1)
    eval_batch_size: int = Field(ge=1)
    mixup: float = Field(ge=0)
    accumulate: int = Field(ge=1)
    seed: int = Field(ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    matmul: Literal["highest", "high", "medium"]
    device: str
    workers: int = Field(ge=0)
    log_every: int = Field(ge=1)
    checkpoint_every: int | None = Field(ge=1)
    tensorboard: bool
    store: Literal["float32", "float16"]


class EvaluateSection(Section, frozen=True):
    """How an epoch is chosen and a model is scored.

    Attributes:
        thresholds: "fixed" uses `threshold`; "global" and "per_class" tune on the validation split.
        threshold: The fixed threshold, in (0, 1).
        objective: What a global threshold maximises.
        ties: Which of equally good thresholds; see `tune_threshold`.
        metric: What the best epoch maximises: "mean" is the mean of macro, micro, samples F1 and mAP (accuracy where
            one label holds per photo); or one of those by name.
        select: Split that chooses the epoch: "val"; "test" as the released code does (then the figures are too good);
            "last" takes the last epoch.
        bootstrap: Draws of the 95 % intervals of the final report; 0 for none.
    """

    thresholds: Literal["fixed", "global", "per_class"]
    threshold: float = Field(gt=0, lt=1)
    objective: Literal["macro_f1", "micro_f1", "samples_f1", "mean_f1"]
    ties: Literal["middle", "first"]
    metric: Literal["mean", "mAP", "macro_f1", "micro_f1", "samples_f1", "accuracy"]
    select: Literal["val", "test", "last"]
    bootstrap: int = Field(ge=0)


class Recipe(Section, frozen=True):
    """A whole training run.

    Attributes:
        name: Name of the recipe.
        protocol: "paper", "released" or "clean": whose rules it follows.
        augment: Training views of a photo; None trains on the plain photos.
    """

    name: str
    protocol: Literal["paper", "released", "clean"]
    data: DataSection
    backbone: BackboneSection
    method: MethodSection
    augment: AugmentConfig | None
    cache: CacheSection
    optim: OptimSection
    schedule: ScheduleSection
    train: TrainSection
    evaluate: EvaluateSection


def builtin_recipes() -> list[str]:
    """Names of the recipes inside the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "defaults")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe over the defaults, with overrides, validated down to the method's own options.

    Args:
        name_or_path: Name of a built-in recipe, or path of a YAML file.
        overrides: Such as "optim.lr=0.01"; values are YAML.

    Raises:
        RecipeError: No such recipe, malformed YAML, an unknown key (the nearest one is named), a value out of range.
    """
    return validate_recipe(read_recipe(name_or_path, overrides), str(name_or_path))


def validate_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """A recipe of nested mappings.

    Raises:
        RecipeError: As `load_recipe`.
    """
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise nearest_hint(error, Recipe, where, "") from error
    options = method_options(recipe.method.name)
    try:
        options.model_validate(recipe.method.options)
    except ValidationError as error:
        raise nearest_hint(error, options, where, "method.options") from error
    return recipe
