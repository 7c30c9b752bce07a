"""Sums of loss terms that stay on the device until read."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from intclip.training.distributed import Processes


class LossSums:
    """Running sums by name, over photos, steps and processes.

    Attributes:
        values: Sums read so far.
    """

    def __init__(self, processes: Processes, values: Mapping[str, float]) -> None:
        self.values = dict(values)
        self._processes = processes
        self._pending: dict[str, Tensor] = {}
        self._kind = torch.float32 if processes.device.type == "mps" else torch.float64

    def add(self, terms: Mapping[str, Tensor], weight: float = 1.0) -> None:
        """Add weighted terms, without waiting for the device."""
        for name, term in terms.items():
            value = term.detach().to(self._kind) * weight
            self._pending[name] = self._pending[name] + value if name in self._pending else value

    def read(self) -> dict[str, float]:
        """Return the sums over all processes, waiting for the device. Every process must call it at the same step."""
        names = sorted({name for names in self._processes.gather(sorted(self._pending)) for name in names})
        if names:
            zero = torch.zeros((), dtype=self._kind, device=self._processes.device)
            stacked = torch.stack([self._pending.get(name, zero) for name in names])
            for name, value in zip(names, self._processes.sum(stacked).tolist(), strict=True):
                self.values[name] = self.values.get(name, 0.0) + value
        self._pending = {}
        return self.values

    def finite(self) -> bool:
        """Return whether all sums read so far are finite."""
        return all(math.isfinite(value) for value in self.values.values())
