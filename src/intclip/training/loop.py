"""The training loop of all methods, resumable at any step.

A step depends only on the checkpoint (weights, optimiser, moving average, loss sums) and on pure
functions of seed, epoch and step (order, augmentation, dropout, learning rate). So a resumed run equals an
uninterrupted one, bit for bit on a CPU, without storing random states.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intclip.errors import TrainingError
from intclip.evaluation.scoring import headline, make_report
from intclip.training.checkpoint import load_checkpoint, save_checkpoint
from intclip.training.distributed import Processes
from intclip.training.ema import MovingAverage
from intclip.training.experiment import Experiment, seed_everything
from intclip.training.logbook import Line, Logbook
from intclip.training.mixup import mixed
from intclip.training.optimizer import build_optimizer, flatten_optimizer, restore_optimizer, set_rates
from intclip.training.plan import Indices, epoch_order, global_batches, micro_batches, share, steps_per_epoch
from intclip.training.precision import autocast, matmul_precision
from intclip.training.recipe import Recipe
from intclip.training.scoring import choose_thresholds, score, selection_value
from intclip.training.source import Batch, PlainPasses
from intclip.training.sums import LossSums

_log = logging.getLogger(__name__)
State = dict[str, Tensor]
_PREPARE, _STEP, _EPOCH_END = 0, 1, 2  # purposes of random numbers
_UNREADABLE = "unreadable"
_NAMED = 5  # unreadable photos listed in a warning


@dataclass
class Position:
    """State of a run besides tensors, stored in checkpoints.

    Attributes:
        epoch: Current epoch, from 1.
        step: Completed optimiser steps in this epoch.
        sums: Loss terms of this epoch so far, summed over steps.
        best: The best epoch so far: "value", "epoch", "weights" ("raw" or "ema"); empty before the first.
        seconds: Time in training and validation, over all starts.
        total_seconds: Total time, over all starts.
        unreadable: Unreadable training photos: id to error.
    """

    epoch: int = 1
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    total_seconds: float = 0.0
    unreadable: dict[str, str] = field(default_factory=dict)


def prepare_method(recipe: Recipe, experiment: Experiment, processes: Processes) -> None:
    """Call a method's `prepare` with the training photos; the result is the same on every process."""
    method = experiment.method
    seed_everything(recipe.train.seed, _PREPARE)
    method.eval()
    # Also when resuming: a method may keep these batches for later epochs.
    method.prepare(PlainPasses(experiment.sources["train"], recipe.train.eval_batch_size))
    processes.broadcast(method)


class Trainer:
    """Trains an experiment.

    Args:
        recipe: The run's recipe.
        experiment: Its parts, with the method prepared by `prepare_method`.
        processes: The processes.
        out: The run's directory.
        begun: Start time by `time.monotonic`; default: now.
        progress: Show progress on a terminal.
    """

    def __init__(
        self,
        recipe: Recipe,
        experiment: Experiment,
        processes: Processes,
        out: Path,
        *,
        begun: float | None = None,
        progress: bool,
    ) -> None:
        self.recipe, self.experiment, self.processes, self.out = recipe, experiment, processes, out
        self.method, self.source = experiment.method, experiment.sources["train"]
        self.photos = len(self.source.ids)
        self.steps = steps_per_epoch(self.photos, recipe.train.batch_size)
        self.position = Position()
        self.best_state: State = {}
        self.parameters = self.method.learnable_parameters()
        groups = self.method.parameter_groups() if self.parameters else []
        self.optimizer = build_optimizer(recipe.optim, groups) if self.parameters else None
        self.average = None if recipe.optim.ema is None else MovingAverage(self.method.own_state(), recipe.optim.ema)
        self.sums = LossSums(processes, {})
        self.log = Logbook(
            out,
            active=processes.is_main,
            total_steps=recipe.schedule.epochs_run * self.steps,
            tensorboard=recipe.train.tensorboard,
            progress=progress,
        )
        self._start = _Start(time.monotonic() if begun is None else begun)
        self._epoch_start = _Start()

    def run(self, *, resume: bool) -> Position:
        """Train to the end; afterwards the method has the weights of the best epoch.

        Raises:
            TrainingError: The loss is not finite.
            CheckpointError: With `resume`, the checkpoints are damaged or of another model.
        """
        if self.optimizer is not None:
            if resume:
                self._restore()
            with self.log:
                self.log.rewind(self._global_step, self.position.epoch - 1)
                while self.position.epoch <= self.recipe.schedule.epochs_run:
                    self._epoch(self.optimizer)
        if self.best_state:
            self.method.load_own_state(self.best_state)
        self.method.eval()
        return self.position

    def elapsed(self) -> float:
        """Return the total seconds of the run, over all starts: features, training, scoring."""
        return self._start.seconds + time.monotonic() - self._start.time

    @property
    def _global_step(self) -> int:
        return (self.position.epoch - 1) * self.steps + self.position.step

    def _epoch(self, optimizer: torch.optim.Optimizer) -> None:
        train, position, world = self.recipe.train, self.position, self.processes
        self._epoch_start = _Start(time.monotonic(), position.seconds, position.step)
        self.sums = LossSums(world, position.sums)
        self.method.train()
        order = epoch_order(self.photos, train.seed, position.epoch)
        batches = list(global_batches(order, train.batch_size, position.step))
        pieces = [micro_batches(share(batch, world.rank, world.world), train.accumulate) for batch in batches]
        plan = [piece for parts in pieces for piece in parts]
        stream = self.source.batches(plan, epoch=position.epoch, views=self.method.views)
        for batch, parts in zip(batches, pieces, strict=True):
            with matmul_precision(train.matmul):
                self._step(optimizer, stream, parts, len(batch))
            position.step += 1
            self.log.advance(self._global_step, f"epoch {position.epoch}/{self.recipe.schedule.epochs_run}")
            if position.step == self.steps:
                break
            if position.step % train.log_every == 0:
                self._read_sums()
                self.log.write(self._line("step", optimizer))
            if train.checkpoint_every and position.step % train.checkpoint_every == 0:
                self._read_sums()
                self._save(optimizer)
        self._read_sums()
        self._report_unreadable()
        seed_everything(train.seed, _EPOCH_END, position.epoch)
        self.method.after_epoch(position.epoch)
        self.log.write(self._line("epoch", optimizer) | self._validate())
        position.epoch, position.step, position.sums = position.epoch + 1, 0, {}
        self._save(optimizer)

    def _step(
        self, optimizer: torch.optim.Optimizer, stream: Iterator[Batch], parts: list[Indices], photos: int
    ) -> None:
        """Take an optimiser step over `photos` photos, this process's in `parts`, without waiting for the device."""
        recipe, method, position = self.recipe, self.method, self.position
        set_rates(optimizer, recipe.optim, recipe.schedule, self._global_step, self.steps)
        seed_everything(recipe.train.seed, _STEP, position.epoch, position.step, self.processes.rank)
        method.before_step(self._global_step)
        for indices in parts:
            piece = next(stream)
            if lost := len(indices) - len(piece.indices):
                self.sums.add({_UNREADABLE: torch.tensor(lost, device=self.processes.device)})
            if not piece.views:
                continue
            weight = 1.0 if method.loss_reduction == "sum" else len(piece.indices) / photos
            with autocast(recipe.train.precision, self.processes.device):
                terms = method.training_loss(*mixed(piece.views, piece.targets, recipe.train.mixup))
                loss = weight * torch.stack(list(terms.values())).sum()
            torch.autograd.backward(loss)
            self.sums.add(terms, weight)
        self.processes.sum_gradients(self.parameters)
        if recipe.optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, recipe.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step()
        if self.average is not None:
            self.average.update(method.own_state(), self._global_step)

    def _validate(self) -> Line:
        """Score raw weights and moving average, and keep the better one if it is the best so far."""
        best_before = dict(self.position.best)
        raw = {key: value.clone() for key, value in self.method.own_state().items()}
        line: Line = {"metrics": self._score_weights("raw")}
        if self.average is not None:
            self.method.load_own_state(self.average.state)
            line["metrics_ema"] = self._score_weights("ema")
            self.method.load_own_state(raw)
        return line | {"best": self.position.best != best_before}

    def _score_weights(self, weights: str) -> Line:
        metrics = self._scores()
        value, best = metrics["selection"], self.position.best
        if not best or self.recipe.evaluate.select == "last" or value > best["value"]:
            self.best_state = {key: tensor.detach().cpu().clone() for key, tensor in self.method.own_state().items()}
            self.position.best = {"value": value, "epoch": self.position.epoch, "weights": weights}
        return metrics

    def _scores(self) -> Line:
        """Compute metrics of the selecting split, with thresholds tuned on the validation split, if any."""
        recipe, experiment = self.recipe, self.experiment
        task, protocol = experiment.dataset.task, recipe.evaluate
        taxonomy, positive_share = experiment.dataset.taxonomy, experiment.dataset.positive_share
        selecting = "test" if protocol.select == "test" and "test" in experiment.sources else "val"
        wanted = {selecting} if protocol.thresholds == "fixed" else {selecting, "val"}
        scores = {
            split: score(
                self.method,
                experiment.sources[split],
                task,
                processes=self.processes,
                batch_size=recipe.train.eval_batch_size,
                precision=autocast(recipe.train.precision, self.processes.device),
            )
            for split in sorted(wanted)
        }
        thresholds = choose_thresholds(scores.get("val"), task, protocol, positive_share)
        report = make_report(scores[selecting], task, taxonomy, thresholds, positive_share=positive_share)
        line: Line = {"split": selecting, **headline(report, task)}
        line["selection"] = selection_value(report, task, protocol.metric)
        return line | ({"threshold": thresholds} if isinstance(thresholds, float) and task == "multilabel" else {})

    def _read_sums(self) -> None:
        position = self.position
        position.sums = self.sums.read()
        if not self.sums.finite():
            raise TrainingError(
                f"the loss is not finite in epoch {position.epoch}, by step {position.step} of {self.steps}: lower "
                "optim.lr, set optim.clip_norm=1, or use train.precision=fp32"
            )

    def _report_unreadable(self) -> None:
        """Warn about photos that this epoch found unreadable for the first time."""
        found = {self.source.ids[index]: reason for index, reason in self.source.errors.items()}
        found = {name: reason for part in self.processes.gather(found) for name, reason in part.items()}
        new = {name: found[name] for name in sorted(found.keys() - self.position.unreadable.keys())}
        self.position.unreadable |= new
        if new and self.processes.is_main:
            named = [reason if name in reason else f"{name}: {reason}" for name, reason in list(new.items())[:_NAMED]]
            more = f"; and {len(new) - _NAMED} more (metrics.json lists all)" if len(new) > _NAMED else ""
            count = f"{len(new)} of {self.photos}"
            _log.warning("%s training photos cannot be read and are skipped: %s%s", count, "; ".join(named), more)

    def _line(self, kind: str, optimizer: torch.optim.Optimizer) -> Line:
        position, train = self.position, self.recipe.train
        seconds = time.monotonic() - self._epoch_start.time
        speed = min((position.step - self._epoch_start.step) * train.batch_size, self.photos) / max(seconds, 1e-9)
        left = self.recipe.schedule.epochs_run * self.steps - self._global_step
        line: Line = {
            "kind": kind,
            "epoch": position.epoch,
            "step": self._global_step,
            "loss": {name: value / position.step for name, value in position.sums.items() if name != _UNREADABLE},
            "lr": {group["name"]: group["lr"] for group in optimizer.param_groups},
            "images_per_second": round(speed, 1),
            "seconds": round(self._epoch_start.seconds + seconds, 1),
            "seconds_left": round(left * train.batch_size / max(speed, 1e-9)),
        }
        return line | ({_UNREADABLE: int(position.sums[_UNREADABLE])} if _UNREADABLE in position.sums else {})

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        self.position.seconds = self._epoch_start.seconds + time.monotonic() - self._epoch_start.time
        self.position.total_seconds = self.elapsed()
        if not self.processes.is_main:
            return
        moments, numbers = flatten_optimizer(optimizer)
        parts = {"method": self.method.own_state(), "optimizer": moments, "best": self.best_state}
        if self.average is not None:
            parts["ema"] = self.average.state
        tensors = {f"{part}/{key}": value for part, state in parts.items() for key, value in state.items()}
        save_checkpoint(self.out, tensors, {"position": vars(self.position), "optimizer": numbers})

    def _restore(self) -> None:
        found = load_checkpoint(self.out)
        if found is None:
            return
        tensors, meta = found
        parts: dict[str, State] = {"method": {}, "optimizer": {}, "best": {}, "ema": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        self.method.load_own_state(parts["method"])
        if self.average is not None:
            self.average.load(parts["ema"])
        if self.optimizer is not None:
            restore_optimizer(self.optimizer, parts["optimizer"], meta["optimizer"])
        self.position, self.best_state = Position(**meta["position"]), parts["best"]
        self._start.seconds = self.position.total_seconds


@dataclass
class _Start:
    """Start of a clock: the time, and the seconds and steps before."""

    time: float = 0.0
    seconds: float = 0.0
    step: int = 0
