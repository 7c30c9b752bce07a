"""One process or several: this process's rank, and exact sums over all processes.

A single process does not import `accelerate`. With `torchrun` or `accelerate launch`, accelerate picks the
device and the backend (NCCL on GPUs, gloo on CPU).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed
from torch import Tensor, nn

from intclip.errors import IntclipError, RecipeError, TrainingError, reason
from intclip.extras import require

T = TypeVar("T")


@contextmanager
def _others() -> Iterator[None]:
    """Wrap collective operations, with a clear error if another process has ended."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors that name its source files.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this run has ended; read its message, fix the cause, and continue with --resume"
        ) from error


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: Number of this process, from 0.
        world: Number of processes.
        device: Device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    @_others()
    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes."""
        if self.world == 1:
            return tensor
        tensor = tensor.to(self.device).clone()
        torch.distributed.all_reduce(tensor)
        return tensor

    @_others()
    def gather(self, item: T) -> list[T]:
        """Gather a small object of every process, in order of rank."""
        if self.world == 1:
            return [item]
        items: list[T | None] = [None] * self.world
        torch.distributed.all_gather_object(items, item)
        return cast(list[T], items)

    @_others()
    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over all processes.

        One flat reduction instead of DistributedDataParallel, because a share of a batch may be empty or smaller,
        and a parameter may be unused in a step. A mask of used parameters is reduced along with the gradients: a
        parameter without a gradient in any process keeps none, so that weight decay and momentum do not change it, as
        in one process.
        """
        if self.world == 1:
            return
        present = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), present])
        torch.distributed.all_reduce(flat)
        *pieces, present = torch.split(flat, [*(gradient.numel() for gradient in gradients), len(parameters)])
        for parameter, piece, count in zip(parameters, pieces, present.tolist(), strict=True):
            parameter.grad = piece.view_as(parameter) if count else None

    @_others()
    def wait(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            torch.distributed.barrier()

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run a function in every process and return all results by rank.

        Raises:
            IntclipError: The error of the first process that failed, raised in every process.
            TrainingError: Another process failed with another error, which it raises itself.
        """
        if self.world == 1:
            return [work()]
        result: T | None = None
        failed: IntclipError | None = None
        try:
            result = work()
        except IntclipError as error:
            failed = error
        except Exception as error:
            self.gather((None, TrainingError(f"process {self.rank} failed: {type(error).__name__}: {error}")))
            raise
        outcomes = self.gather((result, failed))
        for _, failure in outcomes:
            if failure is not None:
                raise failure from failed
        return [cast(T, outcome) for outcome, _ in outcomes]

    @_others()
    def broadcast(self, module: nn.Module) -> None:
        """Broadcast the first process's parameters and buffers."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                torch.distributed.broadcast(tensor, src=0)


def connect(device: str = "auto") -> Processes:
    """Return this process among those of the launcher.

    Args:
        device: "auto" uses a GPU if there is one; else a torch device such as "cpu" or "cuda:1".

    Raises:
        RecipeError: This machine does not have the device, or the launcher's variables are wrong.
        MissingExtraError: Several processes were started and accelerate is not installed.
    """
    if _world() > 1:
        # Set "cpu" explicitly: otherwise accelerate finds no backend, and each process is alone. #
        # Hours, because each process waits until all have filled their part of a cache.
        cpu = pick_device(device).type == "cpu"
        start = require("accelerate", "train").PartialState
        try:
            state = start(cpu=cpu, timeout=timedelta(hours=12))
        except (ValueError, RuntimeError) as error:  # from the launcher's variables or the network
            why = f"cannot join the {_world()} processes of WORLD_SIZE: {reason(error)}"
            raise RecipeError(f"{why}; start with torchrun or accelerate launch, or unset WORLD_SIZE") from error
        return Processes(state.process_index, state.num_processes, state.device)
    return Processes(0, 1, pick_device(device))


def _world() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal():
        raise RecipeError(f"WORLD_SIZE={text}: not a number of processes; start with torchrun, or unset it")
    return int(text)


def pick_device(name: str) -> torch.device:
    """Return the torch device of a name; "auto" is a GPU if there is one.

    Raises:
        RecipeError: This machine does not have the device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(f"device {name!r} is not on this machine; use auto, cpu, cuda or cuda:N") from error
