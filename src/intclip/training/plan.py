"""Which photos each process sees at each step: a pure function of seed, epoch and step.

The order is global: a step takes one global batch, and every process takes its share of it. So a run can stop at any
step and go on with another number of processes, without a photo seen twice or left out.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def epoch_order(count: int, seed: int, epoch: int) -> Indices:
    """A permutation of 0 … count-1 for this epoch (counted from 1)."""
    return np.random.default_rng([seed, epoch]).permutation(count).astype(np.int64)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Number of global batches of an epoch; the last one may be smaller."""
    return -(-count // batch_size)


def global_batches(order: Indices, batch_size: int, start: int = 0) -> Iterator[Indices]:
    """The global batches of an order, from step `start` (counted from 0) on."""
    for first in range(start * batch_size, len(order), batch_size):
        yield order[first : first + batch_size]


def share(batch: Indices, rank: int, world: int) -> Indices:
    """The part of a global batch that process `rank` of `world` takes; parts differ by at most one photo."""
    return np.array_split(batch, world)[rank]


def micro_batches(indices: Indices, parts: int) -> list[Indices]:
    """A process's share in at most `parts` pieces for gradient accumulation, none empty."""
    return [piece for piece in np.array_split(indices, parts) if len(piece)]
