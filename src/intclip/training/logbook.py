"""Logs of a run: `log.jsonl`, optional TensorBoard events, and a progress line on a terminal."""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from intclip.extras import require
from intclip.files import write_text

LOG_NAME = "log.jsonl"
Line = dict[str, Any]


class Logbook:
    """Writes the log of a run; active only in the first process.

    Args:
        directory: The run's directory.
        active: Whether to write and show anything.
        total_steps: Optimiser steps of the whole run, for the progress line.
        tensorboard: Also write TensorBoard events to `directory/tensorboard`.
        progress: Show progress when standard error is a terminal.

    Raises:
        MissingExtraError: TensorBoard is requested but not installed.
    """

    def __init__(
        self, directory: Path, *, active: bool, total_steps: int, tensorboard: bool = False, progress: bool = True
    ) -> None:
        self._path = directory / LOG_NAME
        self._active = active
        self._total = total_steps
        self._writer = None
        if active and tensorboard:
            require("tensorboard", "train")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(directory / "tensorboard"))
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            transient=True,
            disable=not (active and progress and sys.stderr.isatty()),
            console=_stderr_console(),
        )
        self._task = self._bar.add_task("training", total=total_steps)

    def __enter__(self) -> Self:
        """Start the progress line."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the progress line and flush the events."""
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def advance(self, step: int, text: str | None = None) -> None:
        """Show the number of completed steps."""
        self._bar.update(self._task, completed=step, description=text)

    def write(self, line: Line) -> None:
        """Append one line; its numbers also go to TensorBoard."""
        if not self._active:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for key, value in flat_numbers(line).items():
                self._writer.add_scalar(f"{line['kind']}/{key}", value, line["step"])

    def rewind(self, step: int, epoch: int) -> None:
        """Drop the lines of steps after `step` and of epochs after `epoch`, which a resumed run writes again."""
        if not self._active or not self._path.exists():
            return
        kept = [line for line in read_log(self._path) if line["step"] <= step and _complete(line) <= epoch]
        write_text(self._path, "".join(json.dumps(line) + "\n" for line in kept))


def read_log(path: Path) -> list[Line]:
    """Return the complete lines of a log, without a last one cut off by a kill."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def flat_numbers(line: Line, prefix: str = "") -> dict[str, float]:
    """Flatten the numbers of nested mappings to dotted names."""
    out: dict[str, float] = {}
    for key, value in line.items():
        if isinstance(value, dict):
            out.update(flat_numbers(value, f"{prefix}{key}."))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[prefix + key] = float(value)
    return out


def _complete(line: Line) -> int:
    return int(line["epoch"]) if line["kind"] == "epoch" else 0


def _stderr_console() -> Any:
    from rich.console import Console

    return Console(stderr=True)
