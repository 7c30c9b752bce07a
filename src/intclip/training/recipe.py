"""Validated recipes of training runs. All defaults are in `recipes/defaults.yaml`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from intclip.data.transforms import AugmentConfig
from intclip.methods.registry import method_options
from intclip.thresholds import Objective, Ties
from intclip.training.recipe_file import RECIPES, nearest_hint, read_recipe
from intclip.training.schedule import ScheduleName, ScheduleUnit


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of a recipe's sections: complete, immutable, without unknown keys or infinite numbers."""


class DataSection(Section, frozen=True):
    """Data of a run.

    Attributes:
        name: A dataset of `load_dataset`.
        root: Its folder or file; None if not needed.
        taxonomy: Name or file of a taxonomy with the same classes but other sentences; None for the dataset's.
        train: Training split.
        val: Split for selection and thresholds; if None or missing, `holdout` of `train` is held out.
        test: Split scored once, at the end; None for none.
        holdout: Share of training photos held out if there is no validation split, in (0, 1).
        positive_share: Smallest positive target; None for the dataset's.
        soft_targets: Train on shares of votes; otherwise on 0 and 1.
        texts_as_images: Train on the texts of the training split instead of its photos; validation and test use photos.
            Only for methods that use `pooled` and `regions`.
        masks: Object masks of the training photos, for methods that use them: a folder of `ID.png`, or Intentonomy's
            `coco_maskrcnn.json`; None for none.
        teacher: A model, as for `intclip.load`, whose probabilities of the training photos replace their labels;
            validation and test keep theirs. None to train on the labels.
        limit: Maximum number of photos per split, for quick tests; None for all.
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
    teacher: str | None
    limit: int | None = Field(ge=1)
    options: dict[str, Any]

    @model_validator(mode="after")
    def _probabilities_of_photos(self) -> "DataSection":
        if self.teacher is not None and (self.texts_as_images or not self.soft_targets):
            raise ValueError(
                "teacher gives probabilities of photos: set soft_targets to true, texts_as_images to false"
            )
        return self


class BackboneSection(Section, frozen=True):
    """The frozen image and text towers.

    Attributes:
        name: Registry name, such as "lite", "RN101" or "ViT-B/32".
        checkpoint: Weights file or folder, or "hf:owner/name"; None for the registry's.
        activation: Activation of the transformers' MLPs if no configuration file has it: "gelu" for most LAION models.
        split: Split between trunk and deep layers: "paper" or "released".
        regions: Region features of a ViT's patches: "tokens", "values" (MaskCLIP) or "clear" (ClearCLIP); see
            `load_backbone`.
        size: Side of the square input in pixels, for towers that accept several ("lite": multiples of 32).
        normalize: Normalise by the pretraining's mean and deviation; the released IntCLIP does not.
        crop: "center" or "squash" (resize both sides without cropping); None for the backbone's.
        interpolation: "bicubic" or "bilinear"; None for the backbone's.
        engine: Engine of frozen features: "auto" is OpenVINO on a CPU if installed, else torch.
    """

    name: str
    checkpoint: str | None
    activation: Literal["quick_gelu", "gelu", "gelu_tanh", "relu"] | None = None
    split: Literal["paper", "released"]
    regions: Literal["tokens", "values", "clear"]
    size: int | None = Field(ge=1)
    normalize: bool
    crop: Literal["center", "squash"] | None
    interpolation: Literal["bicubic", "bilinear"] | None
    engine: Literal["auto", "torch", "openvino", "onnx"]


class MethodSection(Section, frozen=True):
    """The trained method.

    Attributes:
        name: Registry name of the method.
        options: Its options; see its `Options`.
    """

    name: str
    options: dict[str, Any]


class CacheSection(Section, frozen=True):
    """Feature cache, so that frozen layers run once per photo instead of once per epoch.

    Attributes:
        path: "auto" uses the user's cache folder if the method allows it, "off" computes features at every step;
            anything else is a folder.
        views: Augmented views per photo, through which epochs cycle, cached or not; 0 draws new views in every epoch,
            which cannot be cached.
        dtype: Type of the training split's features on disk; scored splits use float32.
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
        decay_vectors: Also decay biases, norm scales and other one-dimensional parameters.
        multipliers: Parameter group to its learning-rate multiplier, at least 0; default: the method's.
        clip_norm: Maximum norm of the whole gradient; None for no clipping.
        ema: Decay of the moving average of the weights, in [0, 1); None for none. Validation scores both the average
            and the raw weights, and keeps the better.
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
        epochs: Epochs of the schedule.
        stop_after: Epochs after which the run ends early; None for the whole schedule.
        warmup_epochs: Epochs of the warm-up.
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
        """Return the number of epochs of the run."""
        return min(self.epochs, self.stop_after or self.epochs)

    @model_validator(mode="after")
    def _warm_up_fits(self) -> "ScheduleSection":
        if self.warmup_epochs and self.warmup_epochs >= self.epochs > 1:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}")
        return self


class TrainSection(Section, frozen=True):
    """Settings of the training loop.

    Attributes:
        batch_size: Photos per optimiser step, over all processes.
        eval_batch_size: Photos per scoring batch of one process.
        mixup: α of Beta(α, α) for the weight of each photo's features and targets when mixed with another photo's; 0
            for no mixup. Pairs are within one process's part of a batch.
        accumulate: Number of pieces of a process's share of a batch, to save memory; the result is the same.
        seed: Seed of initial weights, order, augmentation and dropout.
        precision: "auto" is bf16 on a GPU that supports it, else fp32; "fp16" has no gradient scaler, as in the
            released code.
        matmul: torch's float32 matmul precision in training, forward and backward: "high" and "medium" round the
            factors of float32 matrix products if the hardware is faster for it (TF32 on a GPU, bf16 on a CPU with AMX)
            and have no effect otherwise. Scoring is always exact.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        workers: Threads that decode photos.
        log_every: Steps between log lines.
        checkpoint_every: Steps between checkpoints within an epoch; None for after epochs only.
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
    """Settings of selection and scoring.

    Attributes:
        thresholds: "fixed" uses `threshold`; "global" and "per_class" tune on the validation split.
        threshold: The fixed threshold, in (0, 1).
        objective: Objective of a global threshold; those per class maximise macro F1.
        ties: Choice between equally good thresholds; see `tune_threshold`.
        metric: Metric for selecting the epoch: "mean" is the mean of macro, micro, samples F1 and mAP (accuracy for
            single-label tasks); or one of those by name.
        select: Split for selecting the epoch: "val"; "test" as in the released code (optimistic figures); "last" for
            the last epoch.
        bootstrap: Draws of the 95 % intervals of the final report; 0 for none.
    """

    thresholds: Literal["fixed", "global", "per_class"]
    threshold: float = Field(gt=0, lt=1)
    objective: Objective
    ties: Ties
    metric: Literal["mean", "mAP", "macro_f1", "micro_f1", "samples_f1", "accuracy"]
    select: Literal["val", "test", "last"]
    bootstrap: int = Field(ge=0)


class Recipe(Section, frozen=True):
    """A whole training run.

    Attributes:
        name: Name of the recipe.
        protocol: "paper", "released" or "clean".
        augment: Augmentation; None for none.
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
    """Return the names of the built-in recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem != "defaults")


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe with defaults and overrides, validated including the method's options.

    Args:
        name_or_path: Name of a built-in recipe, or path of a YAML file.
        overrides: Such as "optim.lr=0.01"; values are YAML.

    Raises:
        RecipeError: Unknown recipe, malformed YAML, an unknown key (the closest one is suggested), or a value out of
            range.
    """
    return validate_recipe(read_recipe(name_or_path, overrides), str(name_or_path))


def validate_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Validate a recipe of nested mappings.

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
