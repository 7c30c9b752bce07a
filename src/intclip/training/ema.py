"""Exponential moving average of a method's own state."""

from collections.abc import Mapping

import torch
from torch import Tensor


class MovingAverage:
    """Moving average of a state: average ← decay · average + (1 − decay) · state, starting with the first state.

    Attributes:
        decay: In [0, 1).
        state: The average; tensors that are not floating point are copies of the newest.
    """

    def __init__(self, state: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in state.items()}

    @torch.no_grad()
    def update(self, state: Mapping[str, Tensor], step: int) -> None:
        """Update the average after one optimiser step.

        At first the decay is smaller, so that initial weights do not dominate a short run.

        Args:
            state: Weights now.
            step: Steps done before this one.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in state.items():
            average = self.state[key]
            if average.is_floating_point():
                average.lerp_(value.detach(), 1 - decay)
            else:
                average.copy_(value)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replace the average by a stored one."""
        for key, average in self.state.items():
            average.copy_(state[key])
