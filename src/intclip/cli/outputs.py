"""Outputs of `intclip predict`: terminal, JSON, CSV, Parquet, and XMP sidecars."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.common import can_print, open_console, print_note, printable, spare_inputs
from intclip.cli.options import AsJson, Threshold, writable_file
from intclip.cli.process import silence_stdout
from intclip.errors import IntclipError, StorageError
from intclip.files import is_stdout

if TYPE_CHECKING:
    from intclip.data.images import ImageInput
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor
    from intclip.inference.results import Writer

SHOWN_FAILURES = 20
_BAR = 20
_SIGNS, _PLAIN_SIGNS = ("●", "○", "━"), ("*", "o", "=")


@dataclass(frozen=True)
class Display:
    """Which part of a prediction is shown."""

    top: Annotated[int, typer.Option(min=1, help="Labels shown for each photo, most probable first.")] = 5
    threshold: Threshold = None
    level: Annotated[str | None, typer.Option(help="Report probabilities at this level of the taxonomy.")] = None


@dataclass(frozen=True)
class Outputs:
    """Where predictions go."""

    as_json: AsJson = False
    csv: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="CSV file to write, one row per photo; - is standard output."),
    ] = None
    parquet: Annotated[
        Path | None,
        typer.Option(callback=writable_file, help="Parquet file to write, one row per photo; - is standard output."),
    ] = None
    xmp: Annotated[
        bool,
        typer.Option(
            "--xmp",
            help="Add predicted labels as keywords to each photo's sidecar "
            "(photo.jpg.xmp), for digiKam, Lightroom, immich and PhotoPrism; its other content is kept.",
        ),
    ] = False

    @property
    def tables(self) -> list[Path]:
        """The files to write."""
        return [path for path in (self.csv, self.parquet) if path is not None]

    def check(self, named: Sequence[str], images: "Sequence[ImageInput | None]") -> None:
        """Reject outputs that would overwrite each other or an input, before computing anything.

        Args:
            named: Arguments of the command line.
            images: The photos they expand to.

        Raises:
            StorageError: Outputs conflict, or a photo cannot have a sidecar.
        """
        for table in self.tables:
            spare_inputs(table, [*named, *(image for image in images if isinstance(image, str | Path))])
        if len(self.tables) == 2 and self.tables[0].resolve() == self.tables[1].resolve():
            raise StorageError(
                f"{self.csv}: --csv and --parquet name the same file; choose another name for one of them"
            )
        if sum(map(is_stdout, self.tables)) + self.as_json > 1:
            raise StorageError("standard output can have only one of --json, --csv - and --parquet -")
        if self.xmp:
            _check_sidecars(images)


class Results:
    """Writes predictions to all outputs and collects failures.

    Args:
        outputs: The outputs.
        shown: What is shown.
        predictor: The model.
        stack: Closes the files; on error they are removed.
    """

    def __init__(self, outputs: Outputs, shown: Display, predictor: "Predictor", stack: ExitStack) -> None:
        from intclip.inference.results import csv_writer, json_writer, parquet_writer

        levels = list(predictor.taxonomy.levels.values())
        names = levels[predictor.taxonomy.level_index(0 if shown.level is None else shown.level)]
        both = len(predictor.alone) > 1
        self._outputs, self._failures, self._unwritten = outputs, [], []  # type: tuple[Outputs, list[str], list[str]]
        self._count = self._sidecars = 0
        self._files: list[Writer] = []
        self._printer: Writer | None = None
        if outputs.csv is not None:
            self._files.append(stack.enter_context(csv_writer(outputs.csv, names, shown.level, conflict=both)))
        if outputs.parquet is not None:
            self._files.append(stack.enter_context(parquet_writer(outputs.parquet, names, shown.level, conflict=both)))
        if outputs.as_json:
            self._printer = stack.enter_context(json_writer(sys.stdout, shown.level))
        elif not (self._files or outputs.xmp):
            self._printer = _table_writer(shown.top, shown.level)
        self._predictor = predictor

    def write(self, image: "ImageInput | None", prediction: "Prediction") -> None:
        """Write the next prediction.

        Raises:
            BrokenPipeError: Standard output was closed, and there is no other output.
        """
        self._count += 1
        if prediction.error is not None:
            self._failures.append(prediction.error)
        for write in self._files:
            write(prediction)
        if self._outputs.xmp and prediction.error is None:
            self._write_sidecar(image, prediction)
        if self._printer is not None:
            try:
                self._printer(prediction)
            except BrokenPipeError:
                if not (self._files or self._outputs.xmp):
                    raise
                silence_stdout()  # the files are still wanted

    def finish(self) -> None:
        """Report what was written.

        Raises:
            IntclipError: Something could not be read or written.
        """
        failed, count = len(self._failures), self._count
        if not self._outputs.as_json:
            print_note(self._predictor)
            for path in self._outputs.tables:
                if not is_stdout(path):
                    unread = f", {failed:,} of which could not be read" if failed else ""
                    print(f"{path}: {count:,} photos{unread}", file=sys.stderr)
            if self._outputs.xmp:
                print(f"sidecars written or changed: {self._sidecars:,}", file=sys.stderr)
        _list("could not be read:", [] if count == failed == 1 else self._failures)
        _list("sidecars could not be written:", self._unwritten)
        if count == failed == 1:
            raise IntclipError(self._failures[0])
        if count == failed:
            raise IntclipError(f"none of the {count} photos could be read; check the first one listed above")
        if failed:
            raise IntclipError(f"{failed} of {count} photos could not be read; the others are done")
        if self._unwritten:
            raise IntclipError(f"{len(self._unwritten)} of {count} sidecars could not be written; the others are done")

    def _write_sidecar(self, image: "ImageInput | None", prediction: "Prediction") -> None:
        from intclip.inference.sidecars import write_sidecar

        assert isinstance(image, Path)  # checked by `Outputs.check`
        try:
            self._sidecars += write_sidecar(image, prediction) is not None
        except StorageError as error:
            self._unwritten.append(str(error))


def _check_sidecars(images: "Sequence[ImageInput | None]") -> None:
    from intclip.data.naming import describe
    from intclip.extras import require

    require("lxml", "xmp")
    for image in images:
        if not isinstance(image, Path):
            name = "a text alone" if image is None else describe(image)
            raise StorageError(f"--xmp writes a sidecar next to each photo's file; {name} has no file")


def _table_writer(top: int, level: str | None) -> "Writer":
    """Prints a block per photo: its path, then the most probable labels with bars."""
    from rich.markup import escape

    from intclip.inference.display import UNCLEAR

    console = open_console()
    holds_sign, below_sign, bar_sign = _SIGNS if can_print("".join(_SIGNS)) else _PLAIN_SIGNS

    def write(prediction: "Prediction") -> None:
        if prediction.error is not None:
            return
        console.print(f"[bold]{escape(printable(prediction.source))}[/bold]")
        if not prediction.clear:
            console.print(f"  {UNCLEAR}; nearest:")
        for name, probability, holds in _best(prediction, top, level):
            bar = bar_sign * round(_BAR * probability)
            sign, style = (holds_sign, "green") if holds else (below_sign, "dim")
            console.print(f"  [{style}]{sign} {probability:5.3f} {bar:<{_BAR}} {escape(name)}[/{style}]")
        if prediction.conflict is not None:
            console.print(f"  conflict of photo and text {prediction.conflict.score:.3f}{_disputed(prediction)}")

    return write


def _disputed(prediction: "Prediction") -> str:
    """Format the labels that only one channel predicts, the two widest gaps."""
    from rich.markup import escape

    pairs = list(prediction.conflict.disputed.items())[:2] if prediction.conflict is not None else []
    found = [f"{escape(name)} {photo:.2f} by photo, {words:.2f} by text" for name, (photo, words) in pairs]
    return f": {'; '.join(found)}" if found else ""


def _best(prediction: "Prediction", top: int, level: str | None) -> list[tuple[str, float, bool]]:
    """Return the most probable names, their probabilities, and whether they are predicted (a parent if a child is)."""
    if level is None:
        holding = set(prediction.labels)
        return [(name, probability, name in holding) for name, probability in prediction.top(top)]
    scores = prediction.level(level)
    taxonomy = prediction.taxonomy
    depth = taxonomy.level_index(level)
    holding = {name if depth == 0 else taxonomy.parents[name][depth - 1] for name in prediction.labels}
    best = sorted(scores.items(), key=lambda item: -item[1])[:top]
    return [(name, probability, name in holding) for name, probability in best]


def _list(title: str, messages: Sequence[str]) -> None:
    if not messages:
        return
    print(title, file=sys.stderr)
    for message in messages[:SHOWN_FAILURES]:
        print(f"  {printable(message)}", file=sys.stderr)
    if len(messages) > SHOWN_FAILURES:
        hint = " (--json, --csv and --parquet name all)" if title.endswith("read:") else ""
        print(f"  … and {len(messages) - SHOWN_FAILURES} more{hint}", file=sys.stderr)
