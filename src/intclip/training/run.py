"""One training run from recipe to bundle: `train`."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from intclip.backbones.base import Backbone
from intclip.backbones.hub import HUB_PREFIX
from intclip.data.sample import Dataset, Sample
from intclip.errors import StorageError, TrainingError
from intclip.evaluation.report import write_predictions, write_report
from intclip.evaluation.scoring import Scores, Thresholds, headline, make_report, to_json
from intclip.files import write_text
from intclip.inference.bundle import save_bundle
from intclip.methods.registry import method_options
from intclip.timing import peak_memory_mb
from intclip.training.checkpoint import NEWEST, PREVIOUS
from intclip.training.distributed import Processes, connect
from intclip.training.experiment import Experiment, build_experiment, deterministic, open_inputs
from intclip.training.fingerprint import DATA, Fingerprint, check_unchanged, fingerprint
from intclip.training.loop import Trainer, prepare_method
from intclip.training.precision import autocast
from intclip.training.recipe import Recipe, load_recipe
from intclip.training.recipe_file import dump_recipe
from intclip.training.scoring import choose_thresholds, score
from intclip.training.teacher import load_teacher, with_probabilities
from intclip.version import __version__

_log = logging.getLogger(__name__)

RECIPE, METRICS, BUNDLE = "recipe.yaml", "metrics.json", "bundle"
PLACE_KEYS = (
    ("data", "root"),
    ("data", "teacher"),
    ("cache", "path"),
    ("train", "device"),
    ("train", "workers"),
    ("train", "eval_batch_size"),
    ("train", "log_every"),
    ("train", "checkpoint_every"),
    ("train", "tensorboard"),
    ("train", "store"),
)
"""Keys that may differ when a run is resumed: locations and logging. A teacher's probabilities are in the
fingerprint."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    Attributes:
        out: Its directory.
        bundle: The trained model, for `intclip.load`.
        metrics: Content of `metrics.json`.
    """

    out: Path
    bundle: Path
    metrics: dict[str, Any]

    def headline(self, split: str) -> dict[str, float]:
        """Return the main metrics of a split, as fractions."""
        figures: dict[str, float] = self.metrics["splits"][split]["headline"]
        return figures


def train(
    recipe: Recipe,
    out_dir: str | Path,
    resume: bool = False,
    *,
    dataset: Dataset | None = None,
    backbone: Backbone | None = None,
    progress: bool = True,
) -> TrainResult:
    """Train a method, score it once on the test split, and save it.

    The directory gets `recipe.yaml`, `log.jsonl`, `checkpoint.safetensors` while it runs, and at the end `bundle/`,
    and for every scored split `report-<split>.json`, `.md` and `predictions-<split>.parquet`; `metrics.json` comes last
    and marks the run as finished.

    Args:
        recipe: The recipe.
        out_dir: The run's directory.
        resume: Continue from the newest checkpoint, or start if there is none; a finished run is returned unchanged.
            Otherwise an existing run is an error.
        dataset: Use this one instead of the recipe's `data.name`.
        backbone: Use this one instead of the recipe's `backbone.name`.
        progress: Show progress when standard error is a terminal.

    Raises:
        StorageError: The directory already has a run, or cannot be written.
        TrainingError: With `resume`, the recipe or data differ; or the loss is not finite.
        DatasetError: The dataset or a split is missing.
        CheckpointError: The backbone's weights are missing, or the checkpoints damaged.
    """
    begun = time.monotonic()
    out = Path(out_dir)
    processes = connect(recipe.train.device)
    check_directory(out, recipe, resume=resume)
    processes.wait()
    if resume and (out / METRICS).exists():
        _log.info("the run in %s is finished; nothing was trained", out)
        return load_result(out)
    with deterministic(processes.device):
        dataset, backbone = open_inputs(recipe, dataset=dataset, backbone=backbone)
        dataset = _taught(recipe, dataset, processes)
        data = _fingerprint(recipe, dataset, backbone, processes, out)
        experiment = build_experiment(recipe, processes, dataset, backbone)
        # The directory is created only now, so that an invalid recipe leaves nothing behind.
        with _claimed(out, recipe, data, active=processes.is_main):
            processes.wait()
            prepare_method(recipe, experiment, processes)
            trainer = Trainer(recipe, experiment, processes, out, begun=begun, progress=progress)
            position = trainer.run(resume=resume)
            scored: list[str] = [split for split in ("val", "test") if split in experiment.sources]
            scores, speeds = {}, {}
            for split in scored:
                started = time.monotonic()
                scores[split] = _score(recipe, experiment, processes, split)
                speeds[split] = round(len(scores[split].ids) / max(time.monotonic() - started, 1e-9), 1)
            if processes.is_main:
                metrics = _write_results(out, recipe, experiment, scores) | {
                    "best": position.best,
                    "unreadable": dict(sorted(position.unreadable.items())),
                    "cost": {
                        "training_seconds": round(position.seconds, 1),
                        "photos_per_second": speeds,
                        "peak_memory_mb": peak_memory_mb(),
                    },
                    "versions": {"intclip": __version__, "torch": torch.__version__},
                    "seconds": round(trainer.elapsed(), 1),
                }
                write_text(out / METRICS, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
                for name in (NEWEST, PREVIOUS):
                    (out / name).unlink(missing_ok=True)
            processes.wait()
    return load_result(out)


def load_result(out: Path) -> TrainResult:
    """Return the result of a finished run.

    Raises:
        TrainingError: The run is not finished.
    """
    try:
        metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"the run in {out} is not finished; continue with --resume") from error
    return TrainResult(out, out / BUNDLE, metrics)


def _taught(recipe: Recipe, dataset: Dataset, processes: Processes) -> Dataset:
    """Return a dataset with the teacher's probabilities, computed in the first process, as targets of train."""
    spec = recipe.data.teacher
    if spec is None:
        return dataset

    def score_photos() -> list[Sample]:
        if not processes.is_main:
            return []
        teacher, train = load_teacher(spec, dataset.taxonomy, device=recipe.train.device), dataset.splits["train"]
        _log.info("%s scores the %d training photos", spec, len(train))
        return with_probabilities(train, teacher)

    return replace(dataset, splits=dataset.splits | {"train": processes.each(score_photos)[0]})


def _fingerprint(recipe: Recipe, dataset: Dataset, backbone: Backbone, processes: Processes, out: Path) -> Fingerprint:
    """Return the data fingerprint, in the first process, rejecting other data than the existing checkpoints'."""

    def compare() -> Fingerprint:
        if not processes.is_main:
            return {}
        now = fingerprint(dataset, backbone, masks=recipe.data.masks, workers=recipe.train.workers)
        if (out / NEWEST).exists() or (out / PREVIOUS).exists():
            check_unchanged(out, now)
        return now

    return processes.each(compare)[0]


@contextmanager
def _claimed(out: Path, recipe: Recipe, data: Fingerprint, *, active: bool) -> Iterator[None]:
    """Lock the directory, write the recipe and the data fingerprint, and remove remains of a killed process.

    A run that fails before its first checkpoint removes both, so that a corrected
    recipe can use the directory.
    """
    if not active:
        yield
        return
    fresh = not (out / RECIPE).exists()
    if fresh:
        write_text(out / RECIPE, dump_recipe(recipe.model_dump(mode="json")))
    with (out / ".lock").open("w") as lock:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise TrainingError(
                    f"another process is training in {out}; wait for it, or choose another --out"
                ) from error
        for path in (*out.glob(".*.partial"), *out.glob(".*.replaced")):
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        write_text(out / DATA, json.dumps(data, indent=1, ensure_ascii=False) + "\n")
        try:
            yield
        except Exception:
            if fresh and not (out / NEWEST).exists():
                (out / RECIPE).unlink(missing_ok=True)
                (out / DATA).unlink(missing_ok=True)
            raise
        finally:
            (out / ".lock").unlink(missing_ok=True)


def check_directory(out: Path, recipe: Recipe, *, resume: bool) -> None:
    """Check that a directory can be used for this run.

    Raises:
        StorageError: It has a run, and `resume` is off.
        TrainingError: It has a run of another recipe.
    """
    if not (out / RECIPE).exists():
        return
    if not resume:
        raise StorageError(f"{out} already has a run; continue with --resume, or choose another --out")
    before, now = learning_part(load_recipe(out / RECIPE)), learning_part(recipe)
    for section in now:
        if before[section] != now[section]:
            raise TrainingError(
                f"the run in {out} has another {section} ({_difference(before[section], now[section])}); resume "
                "with its own recipe, or choose another --out"
            )


def learning_part(recipe: Recipe) -> dict[str, Any]:
    """Return what affects the result: all but name and `PLACE_KEYS`, with the method's defaults."""
    content = recipe.model_dump(mode="json")
    content["method"]["options"] = _full_options(recipe)
    del content["name"]
    for section, key in PLACE_KEYS:
        content[section].pop(key, None)
    return content


def _full_options(recipe: Recipe) -> dict[str, Any]:
    options = method_options(recipe.method.name).model_validate(recipe.method.options)
    return options.model_dump(mode="json")


def _difference(before: Any, now: Any, place: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    return f"{place + ': ' if place else ''}{before!r} there, {now!r} here"


def _score(recipe: Recipe, experiment: Experiment, processes: Processes, split: str) -> Scores:
    return score(
        experiment.method,
        experiment.sources[split],
        experiment.dataset.task,
        processes=processes,
        batch_size=recipe.train.eval_batch_size,
        precision=autocast(recipe.train.precision, processes.device),
    )


def _write_results(out: Path, recipe: Recipe, experiment: Experiment, scores: Mapping[str, Scores]) -> dict[str, Any]:
    """Write reports, predictions and the bundle; return their content of `metrics.json`."""
    dataset, method, protocol = experiment.dataset, experiment.method, recipe.evaluate
    thresholds = choose_thresholds(scores.get("val"), dataset.task, protocol, dataset.positive_share)
    splits: dict[str, Any] = {}
    for split, found in scores.items():
        report = make_report(
            found,
            dataset.task,
            dataset.taxonomy,
            thresholds,
            positive_share=dataset.positive_share,
            draws=protocol.bootstrap,
        )
        write_report(out, f"report-{split}", report, dataset.task, f"{recipe.name}: {dataset.name}, {split}")
        write_predictions(out / f"predictions-{split}.parquet", found, dataset.taxonomy.names)
        figures = headline(report, dataset.task)
        splits[split] = {"photos": len(found.ids), "unreadable": len(found.unreadable), "headline": figures}
        if "intervals" in report:
            splits[split]["intervals"] = {key: report["intervals"].get(key) for key in figures}
    _save_bundle(out / BUNDLE, recipe, experiment, thresholds, splits)
    return {
        "recipe": recipe.name,
        "protocol": recipe.protocol,
        "dataset": dataset.name,
        "task": dataset.task,
        "backbone": method.backbone.name,
        "method": recipe.method.name,
        "seed": recipe.train.seed,
        "epochs": recipe.schedule.epochs_run,
        "learnable_parameters": sum(parameter.numel() for parameter in method.learnable_parameters()),
        "photos": {split: len(samples) for split, samples in dataset.splits.items()},
        "splits": splits,
        "thresholds": to_json(thresholds),
        "thresholds_from": "fixed" if protocol.thresholds == "fixed" else "val",
        "selected_on": protocol.select,
    }


def _save_bundle(
    path: Path, recipe: Recipe, experiment: Experiment, thresholds: Thresholds, splits: Mapping[str, Any]
) -> None:
    checkpoint = recipe.backbone.checkpoint
    content = recipe.model_dump(mode="json")
    content["data"]["root"] = content["cache"]["path"] = None  # local folders are meaningless elsewhere
    teacher = recipe.data.teacher
    if teacher is not None and Path(teacher).exists():
        content["data"]["teacher"] = Path(teacher).name
    if checkpoint is not None and not checkpoint.startswith(HUB_PREFIX):
        content["backbone"]["checkpoint"] = Path(checkpoint).name
    save_bundle(
        path,
        experiment.method,
        thresholds=thresholds,
        recipe=content,
        metrics=splits,
        dtype=recipe.train.store,
        overwrite=True,
    )
