"""Photos of each process at each step: a pure function of seed, epoch and step.

The order is global: every process takes its share of each global batch. So a run can stop at any step and continue with
another number of processes, without repeating or skipping photos.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """Return a permutation of 0 … count-1 for this epoch (counted from 1)."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Return the number of global batches of an epoch; the last one may be smaller."""
    return -(-count // batch_size)


def global_batches(order: Indices, batch_size: int, start: int = 0) -> Iterator[Indices]:
    """Yield the global batches of an order, starting at step `start` (counted from 0)."""
    for first in range(start * batch_size, len(order), batch_size):
        yield order[first : first + batch_size]


def share(batch: Indices, rank: int, world: int) -> Indices:
    """Return the part of a global batch of process `rank` of `world`; parts differ by at most one photo."""
    return np.array_split(batch, world)[rank]


def micro_batches(indices: Indices, parts: int) -> list[Indices]:
    """Split a process's share into at most `parts` non-empty pieces for gradient accumulation."""
    return [piece for piece in np.array_split(indices, parts) if len(piece)]
