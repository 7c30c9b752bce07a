"""Parts shared by commands: dataset options, messages about numbers, JSON, tables, progress bars."""

import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    import typer
    from rich.console import Console

    from intclip.data.images import ImageInput
    from intclip.data.sample import Dataset
    from intclip.inference.predictor import Predictor


def load_named_dataset(name: str, root: str | None, options: list[str] | None) -> "Dataset":
    """Load the dataset, keeping missing photos if its loader can.

    Raises:
        DatasetError: As `load_dataset` and `parse_options`.
    """
    import inspect

    from intclip.data.registry import DATASETS, kind_of, load_dataset

    chosen = parse_options(options)
    kind = name if name in DATASETS else kind_of(Path(name)) if Path(name).exists() else None
    if kind is not None and "missing" in inspect.signature(DATASETS[kind].load).parameters:
        chosen.setdefault("missing", "keep")
    return load_dataset(name, root, **chosen)


def parse_options(options: list[str] | None) -> dict[str, Any]:
    """Parse the options `key=value` of a dataset's loader; values are JSON if they parse, else text.

    Raises:
        DatasetError: An option has no "=", or is reserved for the dataset's location.
    """
    from intclip.errors import DatasetError

    chosen: dict[str, Any] = {}
    for option in options or []:
        key, sign, value = option.partition("=")
        if not sign:
            raise DatasetError(f"--set {option}: write key=value")
        try:
            chosen[key] = json.loads(value)
        except ValueError:
            chosen[key] = value
    if taken := {"name", "root"} & chosen.keys():
        raise DatasetError(
            f"--set {min(taken)}: not a dataset option; give the dataset as argument, its folder with --data-root"
        )
    return chosen


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as "0,1,2".

    Raises:
        RecipeError: A seed is not a non-negative integer, or is repeated.
    """
    from intclip.errors import RecipeError

    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"--seeds {text!r}: give whole numbers separated by commas, such as 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise RecipeError(f"--seeds {text!r}: seeds must be distinct and not negative")
    return seeds


def wrong_value(error: "typer.TyperException") -> str | None:
    """Return the message for an option with an invalid value; None for other errors."""
    from pydantic import ValidationError

    from intclip.errors import first_problem

    option, cause = getattr(error, "param", None), error.__cause__
    if option is None or not isinstance(cause, ValidationError):
        return None
    name = (option.opts or [option.name])[0]
    first = cause.errors(include_url=False)[0]
    if not first["type"].startswith(("greater_than", "less_than", "int_", "float_", "finite_")):
        return f"{name}: {first_problem(cause)[1]}"
    kind = option.type_descriptor
    low, high = kind.parameter_info.min, kind.parameter_info.max
    number = "a whole number" if kind.annotation is int else "a number"
    limits = f" from {low} to {high}" if None not in (low, high) else f" from {low} on" if low is not None else ""
    limits = limits or (f" up to {high}" if high is not None else "")
    return f"{name} {first['input']}: choose {number}{limits}"


_STEERS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that break a line, control a terminal or change the writing direction."""


def printable(text: str) -> str:
    """Escape untrusted text, such as a photo's name, to one line without control characters."""
    return _STEERS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def can_print(text: str) -> bool:
    """Return whether standard output can encode a text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def open_console() -> "Console":
    """Return a console on standard output, styled if it is a terminal."""
    from rich.console import Console

    class Output(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Output(highlight=False, soft_wrap=True)


def print_written(out: Path, text: str) -> None:
    """Print what was written where; on standard error if standard output has the result."""
    from intclip.files import is_stdout

    size = f", {out.stat().st_size / 1e6:.1f} MB" if out.is_file() else ""
    print(f"{out}: {text}{size}", file=sys.stderr if is_stdout(out) else sys.stdout)


def spare_inputs(out: Path, inputs: Iterable[str | Path | None]) -> None:
    """Raise if a result would overwrite one of its inputs.

    Raises:
        StorageError: The file is one of the inputs.
    """
    from intclip.errors import StorageError

    if out.is_file() and any(given is not None and Path(given).exists() and out.samefile(given) for given in inputs):
        raise StorageError(f"{out} is an input; choose another output file")


def words_read(
    predictor: "Predictor", photos: "Sequence[ImageInput | None]", words: Sequence[str | None]
) -> Sequence[str | None] | None:
    """Return the texts of posts, None if there are none.

    For a model that uses only photos, drop the texts, with a message, if
    every post has a photo.
    """
    if not any(words):
        return None
    if "text" not in predictor.channels and None not in photos:
        print(f"{predictor.card.model} uses only photos: ignoring the text in the table", file=sys.stderr)
        return None
    return words


def shell_command() -> str:
    """Return the running command as a user would type it."""
    import shlex

    return shlex.join(["intclip", *sys.argv[1:]])


def program() -> str:
    """Return how to call this program: its name if it is on the PATH, else its path."""
    import shlex
    import shutil

    called = sys.argv[0]
    here = Path(called).name == "intclip" and shutil.which("intclip") != called
    return shlex.quote(called) if here else "intclip"


def print_json(content: object, file: TextIO | None = None) -> None:
    """Print the result of `--json`; characters that standard output cannot encode are escaped."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    print(text if can_print(text) else json.dumps(content, indent=1), file=file)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print aligned columns and an empty line."""
    cells = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print()


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Show a progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, ProgressColumn, SpinnerColumn, Task, TimeRemainingColumn
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f}/s" if task.speed else "")

    columns = (
        SpinnerColumn(),
        *Progress.get_default_columns()[:2],
        MofNCompleteColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def name_models(specs: Sequence[str]) -> dict[str, str]:
    """Map names to models: the part before "=", else the model's name, or the last part of a path.

    Raises:
        IntclipError: Two models have the same name.
    """
    from intclip.errors import IntclipError

    found: dict[str, str] = {}
    for text in specs:
        before, sign, after = text.partition("=")
        name, spec = (before, after) if sign and not Path(text).exists() else ("", text)
        name = name or (Path(spec).resolve().name if Path(spec).exists() else spec)
        if found.get(name, spec) != spec:
            raise IntclipError(f"two models are called {name!r}; name them: --model NAME={spec}")
        found[name] = spec
    return found


CLIP_HINT = (
    "CLIP, trained on 400 million photos, is more accurate: --model zero-shot:ViT-B/32 (downloads 605 MB once; "
    "`intclip models` lists others). This line is shown once."
)


def print_note(predictor: "Predictor") -> None:
    """Print the model's note; on a terminal, the first time, also a hint at more accurate models."""
    from intclip.files import cache_home

    if predictor.note is None:
        return
    print(predictor.note, file=sys.stderr)
    home = cache_home()
    if home is None or not sys.stderr.isatty() or (home / "clip-hint-shown").exists():
        return
    print(CLIP_HINT, file=sys.stderr)
    try:
        home.mkdir(parents=True, exist_ok=True)
        (home / "clip-hint-shown").touch()
    except OSError:
        pass  # the hint is shown again next time
