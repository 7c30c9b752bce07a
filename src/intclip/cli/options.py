"""Options shared by commands, as dataclasses whose fields become options of the command."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from intclip.errors import IntclipError, TextLengthError

if TYPE_CHECKING:
    from intclip.batch.job import ModelOptions
    from intclip.inference.predictor import Predictor

Engine = Literal["auto", "torch", "openvino", "onnx"]
Precision = Literal["f32", "bf16", "f16"]
OPTION_PANELS = {
    "Data": "data data_root options split positive_share exclude lenient read_text",
    "Model": "model taxonomy sentences checkpoint backbone text_encoder",
    "Computing": "engine device precision threads batch_size workers",
    "Map": "kind branch neighbours plain",
    "Job": "runner shard_size status verify retry_errors",
    "Network": "host port allow_host allow_origin api_key_file",
    "Requests": "capacity max_photos max_megapixels max_request_mb upload_seconds answer_seconds connections",
    "Output": "out overwrite as_json csv parquet xmp top threshold level embedding dedupe",
}
"""Panels of the help, and the names of their parameters."""
SHORT = 8
"""Most options of a command whose help has no panels."""
MODELS = "lite, lite2, lite+lite2, zero-shot:RN101, proxy, a bundle's folder, an exported file, or hf://owner/name."


def writable_file(path: Path | None) -> Path | None:
    """Check, as the callback of an option, that its file can be written: before the command loads anything."""
    from intclip.files import check_target

    if path is not None:
        check_target(path)
    return path


def writable_folder(path: Path | None) -> Path | None:
    """Check, as the callback of an option, that its folder can be written."""
    from intclip.files import check_target

    if path is not None:
        check_target(path, folder=True)
    return path


def replaceable_folder(path: Path) -> Path:
    """Check, as the callback of an option, that its folder can be created, or replaced as a whole."""
    from intclip.files import check_target

    check_target(path, folder=True, replace=True)
    return path


Exclude = Annotated[
    list[str] | None,
    typer.Option(
        help="Skip files and folders with this name or path inside a folder, such as '*_small.jpg' or "
        "drafts; may be repeated.",
        metavar="PATTERN",
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Smallest probability of a predicted label; default: the model's thresholds."),
]
ReadText = Annotated[
    bool,
    typer.Option(
        "--read-text",
        help="Also read the text in each picture (OCR) and add it to the post's text, for models that use text.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists.")]
DataRoot = Annotated[str | None, typer.Option(help="Folder of the dataset; default: inside $INTCLIP_DATA.")]
DataOptions = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the dataset; may be repeated.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a key of the recipe, such as optim.lr=0.01; may be repeated."
    ),
]

Labels = Annotated[
    str | None,
    typer.Option("--taxonomy", help="Labels of a zero-shot model: 'dog, cat', a taxonomy's name, or a YAML file."),
]
Sentences = Annotated[
    str, typer.Option(help="Class text of a zero-shot model: fine, consolidated, 3-5, 6-9, 11-15 or 16-20.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Your own weights of the backbone.")]
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODELS)]
EngineOption = Annotated[Engine, typer.Option("--engine", help="Inference engine.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="Arithmetic precision.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Compute threads; default: all cores.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Photos per batch.")]


class PanelledCommand(typer.core.TyperCommand):
    """List the options of a long command by panel; Typer only does so with Rich, which is slow to import."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; name the option that helps if a label's text is too long for the model."""
        try:
            return super().invoke(ctx)
        except TextLengthError as error:
            if "sentences" not in ctx.params:
                raise
            fault = str(error).rpartition(";")[0]
            raise IntclipError(f"{fault}; shorten it, or choose another form with --sentences") from error

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options without a panel, then one section per panel."""
        parameters = self.get_params(ctx)
        options = [p for p in parameters if p.param_type_name == "option" and p.name != "help"]
        panels = {name: panel for panel, names in OPTION_PANELS.items() for name in names.split()}
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *OPTION_PANELS)}
        for parameter in parameters:
            panel = panels.get(parameter.name, "Options") if len(options) > SHORT else "Options"
            row = parameter.get_help_record(ctx)
            if row is not None:
                rows["Arguments" if parameter.param_type_name == "argument" else panel].append(row)
        for title in filter(rows.get, rows):
            with formatter.section(title):
                formatter.write_dl(rows[title])


@dataclass(frozen=True)
class LabelOptions:
    """Labels of a zero-shot model and weights of its backbone."""

    taxonomy: Labels = None
    sentences: Sentences = "11-15"
    checkpoint: Checkpoint = None


@dataclass(frozen=True)
class ModelInFullPrecision(LabelOptions):
    """A model and its engine, in full precision."""

    model: ModelOption = "lite"
    engine: EngineOption = "auto"
    device: Device = "auto"

    def load(self) -> "Predictor":
        """Load the model.

        Raises:
            IntclipError: It cannot be loaded.
        """
        return load_model(self.model, self, engine=self.engine, device=self.device)


@dataclass(frozen=True)
class ModelChoice(ModelInFullPrecision):
    """A model, its engine and precision."""

    precision: PrecisionOption = "f32"

    def load(self) -> "Predictor":
        """Load the model in this precision; raises as its parent."""
        return load_model(self.model, self, engine=self.engine, device=self.device, precision=self.precision)

    def options(self) -> "ModelOptions":
        """Describe the model for the manifest of a batch job."""
        from intclip.batch.job import ModelOptions

        content = dataclasses.asdict(self)
        checkpoint = content.pop("checkpoint")
        return ModelOptions(
            spec=content.pop("model"), checkpoint=None if checkpoint is None else str(checkpoint), **content
        )


@dataclass(frozen=True)
class Reading:
    """How photos are found and read."""

    exclude: Exclude = None
    lenient: Annotated[bool, typer.Option("--lenient", help="Also read truncated photos; missing parts are grey.")] = (
        False
    )
    batch_size: BatchSize = 32
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode photos; with --runner ray, worker processes.")
    ] = None


def load_model(model: str, labels: LabelOptions, **how: Any) -> "Predictor":
    """Load a model by name; `how` sets its engine.

    Raises:
        IntclipError: It cannot be loaded.
    """
    from intclip.inference.loading import load

    return load(model, taxonomy=labels.taxonomy, sentences=labels.sentences, checkpoint=labels.checkpoint, **how)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a command's dataclass parameters into options, one per field."""
    signature = inspect.signature(command)
    kinds: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if dataclasses.is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if name not in kinds:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        hints = get_type_hints(kinds[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in sorted(dataclasses.fields(kinds[name]), key=lambda field: field.name != "model")
        ]

    @wraps(command)
    def run(**values: Any) -> None:
        objects = {
            name: kind(**{field.name: values.pop(field.name) for field in dataclasses.fields(kind)})
            for name, kind in kinds.items()
        }
        command(**values, **objects)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
