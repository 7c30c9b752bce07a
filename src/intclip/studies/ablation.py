"""Run a study: every row with every seed, several in parallel, each a resumable training run.

A cell is a run's directory, so finished cells are not repeated and interrupted ones continue.
Every cell runs in its own process, so a crash affects only itself.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from intclip.data.loading import usable_cores
from intclip.errors import IntclipError, RecipeError, TrainingError, reason
from intclip.files import atomic_directory
from intclip.studies.studies import Study, StudyRow
from intclip.training.recipe import Recipe, load_recipe, validate_recipe
from intclip.training.recipe_file import Content, apply_overrides, merge, method_training

MAX_JOBS = 8
DEFAULT_CLIP = "RN101"
"""The backbone of CLIP recipes."""
PRELOAD = ("intclip.training.run", "torch._dynamo", "pandas")
"""Modules imported once for all cells: training, and lazy imports of torch's optimisers and pyarrow."""


@dataclass(frozen=True)
class Cell:
    """One row with one seed.

    Attributes:
        row: Name of the row.
        seed: Seed of the run.
        recipe: The recipe.
        out: Directory of the run.
    """

    row: str
    seed: int
    recipe: Recipe
    out: Path

    @property
    def finished(self) -> bool:
        """Whether its run is complete."""
        return (self.out / "metrics.json").is_file()


def plan_cells(
    study: Study,
    base: Content,
    out: Path,
    seeds: Sequence[int],
    *,
    overrides: Sequence[str] = (),
    task: str = "multilabel",
    fine_taxonomy: str | None = None,
    jobs: int = 1,
) -> list[Cell]:
    """Plan the cells of a study, row by row.

    Args:
        study: The study.
        base: Content of the base recipe, with the user's overrides.
        overrides: The same overrides, for rows with their own recipe, applied last.
        task: Task of the dataset, which determines the changes of the rows.
        out: Directory of the study.
        seeds: Seeds; one cell per row and seed.
        fine_taxonomy: Taxonomy file of the rows that need one.
        jobs: Parallel runs; they share the cores.

    Raises:
        RecipeError: No row can be run, or a row does not fit the recipe.
    """
    cells = []
    for row in study.rows:
        if not is_run(row, fine_taxonomy):
            continue
        content = base if row.recipe is None else _with_training(base, method_training(row.recipe))
        changed = merge(_on_clip(content, study.clip, overrides), study.set)
        if task == "singlelabel" and not row.own_loss:
            changed = merge(changed, study.singlelabel)
        changed = merge(changed, row.set or {})
        if row.recipe is not None:
            changed = _warm_up_in_share(content, changed)
            changed = _warm_up_in_share(changed, apply_overrides(changed, overrides))
        content = changed
        extra: Content = {"name": f"{base['name']}: {row.name}", "train": {"workers": max(1, usable_cores() // jobs)}}
        if row.needs == "fine_taxonomy":
            extra["data"] = {"taxonomy": fine_taxonomy}
        for seed in seeds:
            with_seed = merge(merge(content, extra), {"train": {"seed": seed}})
            recipe = validate_recipe(with_seed, f"row {row.name!r}")
            cells.append(Cell(row.name, seed, recipe, out / "cells" / slug(row.name) / f"seed-{seed}"))
    if not cells:
        raise RecipeError("no row of this study can be run here; see `intclip ablate --help`")
    return cells


def _with_training(base: Content, training: Content) -> Content:
    """Replace the base's training settings by those of a row's own recipe."""
    return base | training | {"train": base["train"] | training["train"]}


def _on_clip(content: Content, clip: str | None, overrides: Sequence[str]) -> Content:
    """Use the study's CLIP unless another backbone was chosen explicitly."""
    chosen = content["backbone"]["name"] != DEFAULT_CLIP or any(o.startswith("backbone.name=") for o in overrides)
    return content if clip is None or chosen else merge(content, {"backbone": {"name": clip}})


def _warm_up_in_share(before: Content, after: Content) -> Content:
    """Apply changes; if they only shorten the training, the warm-up is shortened in proportion."""
    old, new = before["schedule"], after["schedule"]
    if new["epochs"] != old["epochs"] and new["warmup_epochs"] == old["warmup_epochs"]:
        warmup = old["warmup_epochs"] * new["epochs"] / old["epochs"]
        return merge(after, {"schedule": {"warmup_epochs": warmup}})
    return after


def is_run(row: StudyRow, fine_taxonomy: str | None = None) -> bool:
    """Return whether a row can be run here, not only published figures."""
    if row.recipe is not None:
        return bool(method_training(row.recipe))
    return row.set is not None and (row.needs is None or fine_taxonomy is not None)


def slug(name: str) -> str:
    """Convert a row's name to a folder name."""
    spelled = name.lower().replace("w/o", "without").replace("++", "-pp")
    return "-".join("".join(letter if letter.isalnum() else " " for letter in spelled).split())


def choose_jobs(jobs: int, device: str) -> int:
    """Return the number of parallel cells: `jobs` if given, else one on a GPU or one per core on a CPU."""
    if jobs > 0:
        return jobs
    import torch

    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    return 1 if on_gpu else min(usable_cores(), MAX_JOBS)


def adopt_finished(cells: Sequence[Cell], folder: Path) -> int:
    """Reuse finished runs with the same recipe and seed from other studies.

    Args:
        cells: Cells that have not started are filled.
        folder: Parent folder of the studies.

    Returns: Number of reused runs.
    """
    from intclip.training.run import RECIPE, learning_part

    wanted = [cell for cell in cells if not cell.out.exists()]
    found: dict[str, Path] = {}
    for metrics in sorted(folder.glob("*/cells/*/*/metrics.json")) if wanted else ():
        try:
            recipe = load_recipe(metrics.parent / RECIPE)
        except IntclipError:
            continue  # other version or damaged: train again
        found.setdefault(json.dumps(learning_part(recipe), sort_keys=True), metrics.parent)
    adopted = 0
    for cell in wanted:
        source = found.get(json.dumps(learning_part(cell.recipe), sort_keys=True))
        if source is not None:
            with atomic_directory(cell.out) as partial:
                shutil.copytree(source, partial, dirs_exist_ok=True, ignore=shutil.ignore_patterns("bundle"))
            adopted += 1
    return adopted


def run_cells(
    cells: Sequence[Cell],
    *,
    jobs: int,
    keep_bundles: bool = False,
    progress: bool = True,
    work: Callable[[Cell, int], None] | None = None,
) -> dict[str, str]:
    """Run the unfinished cells.

    Args:
        cells: From `plan_cells`.
        jobs: Parallel runs.
        keep_bundles: Keep the trained models; otherwise only metrics, logs and predictions stay.
        progress: Show a progress bar when standard error is a terminal.
        work: Trains one cell with a number of threads; for tests.

    Returns:
        Directory of every failed cell to its error.

    Raises:
        TrainingError: A cell's directory has a run of another recipe; nothing is run then.
    """
    for cell in cells if work is None else ():
        _check_same(cell)
    pending = [cell for cell in cells if not cell.finished]
    threads = max(1, usable_cores() // jobs)
    context = _context()
    failures: dict[str, str] = {}
    shown = progress and sys.stderr.isatty()
    with Progress(console=Console(stderr=True), transient=True, disable=not shown) as bar:
        task = bar.add_task("ablation", total=len(cells), completed=len(cells) - len(pending))
        if work is None and pending:
            # Each feature cache is filled once, before cells that share it start in parallel.
            bar.update(task, description="filling caches")
            _fill_in_process(context, pending)
        running: dict[int, tuple[BaseProcess, Connection, Cell]] = {}
        try:
            while pending or running:
                while pending and len(running) < jobs:
                    cell = pending.pop(0)
                    bar.update(task, description=f"{cell.row}, seed {cell.seed}")
                    receiver, sender = context.Pipe(duplex=False)
                    process = context.Process(target=_run_cell, args=(cell, threads, sender, work))
                    _start(process, f"row {cell.row!r}, seed {cell.seed}")
                    sender.close()
                    running[process.sentinel] = (process, receiver, cell)
                for sentinel in wait(list(running)):
                    assert isinstance(sentinel, int)
                    process, receiver, cell = running.pop(sentinel)
                    process.join()
                    if not cell.finished:
                        failures[str(cell.out)] = _reason(process, receiver)
                    bar.advance(task)
        finally:
            for process, _, _ in running.values():
                process.terminate()
    if not keep_bundles:
        for cell in cells:
            if cell.finished:
                shutil.rmtree(cell.out / "bundle", ignore_errors=True)
    return failures


def _check_same(cell: Cell) -> None:
    from intclip.training.run import check_directory

    check_directory(cell.out, cell.recipe, resume=True)


def _context() -> Any:
    """Return a context for processes with everything imported if the system can fork, else fresh ones."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


def _start(process: BaseProcess, purpose: str) -> None:
    try:
        process.start()
    except (EOFError, OSError) as error:  # the server that starts processes was killed
        raise TrainingError(
            f"no process could be started for {purpose} ({reason(error)}); free memory and repeat the command"
        ) from error


def _run_cell(cell: Cell, threads: int, sender: Connection, work: Callable[[Cell, int], None] | None) -> None:
    end_with_parent()
    try:
        (work or train_cell)(cell, threads)
    except IntclipError as error:
        sender.send(str(error))
        sys.exit(2)


def end_with_parent() -> None:
    """Exit when the parent process has ended.

    A terminal's Ctrl-C reaches all processes; only the parent handles it, reports it in
    one line and ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_cell(cell: Cell, threads: int) -> None:
    """Train or resume one cell."""
    import torch

    from intclip.training.run import train

    torch.set_num_threads(threads)
    train(cell.recipe, cell.out, resume=True, progress=False)


def _fill_in_process(context: Any, pending: Sequence[Cell]) -> None:
    """Fill the feature caches of unfinished cells in a process of its own."""
    filling = context.Process(target=_fill_caches, args=(_one_seed(pending), usable_cores()))
    try:
        _start(filling, "the feature caches")
        filling.join()
    finally:
        if filling.is_alive():
            filling.terminate()


def _fill_caches(cells: Sequence[Cell], threads: int) -> None:
    end_with_parent()
    import torch

    from intclip.training.distributed import connect
    from intclip.training.experiment import build_experiment, open_inputs

    torch.set_num_threads(threads)
    for cell in cells:
        try:
            build_experiment(cell.recipe, connect(cell.recipe.train.device), *open_inputs(cell.recipe))
        except IntclipError:
            continue  # the cell reports its own error


def _one_seed(cells: Sequence[Cell]) -> list[Cell]:
    """Return the first pending cell of every row with cached features."""
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell.recipe.cache.path != "off":
            first.setdefault(cell.row, cell)
    return list(first.values())


def _reason(process: BaseProcess, receiver: Connection) -> str:
    with suppress(EOFError):
        if receiver.poll():
            return str(receiver.recv())
    code = process.exitcode
    if code == -9:  # Windows has no name for it
        return "its process was killed, as the system does when memory runs out; take fewer --jobs or smaller batches"
    return f"its process ended with code {code}"
