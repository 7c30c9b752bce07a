"""Dual prompts of which one half is a learned prompt and the other a free vector, without the text encoder.

    t of the learned half  = text encoder([start, V₁ … V_M, sentence, end]) + δ_k
    t of the free half     = n_k                                              δ, n ~ N(0, std²), (K, D)

Source: Rawlekar, Bhatnagar, Ahuja: PositiveCoOp and NegativeCoOp, WACV 2025, and their code, where std is 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.methods.prompts import PromptLearner, PromptOptions

Half = Literal["negative", "positive"]


class FreeHalfPrompts(nn.Module):
    """Text features (2, K, D) of one prompt and one free vector per class.

    Args:
        text: Text tower; passed to each call, not stored.
        sentences: K class sentences.
        options: Options of the learned half.
        learned: The half that is a prompt; the other is free.
        std: Standard deviation of δ and n.
        every: See `PromptLearner`.
    """

    def __init__(
        self,
        text: TextTower,
        sentences: Sequence[str],
        options: PromptOptions,
        *,
        learned: Half = "positive",
        std: float = 1.0,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.learned = learned
        self.learner = PromptLearner(text, sentences, options, halves=1, every=every)
        self.offset = nn.Parameter(torch.randn(len(sentences), text.embed_dim) * std)
        self.free = nn.Parameter(torch.randn(len(sentences), text.embed_dim) * std)

    @property
    def context(self) -> nn.Parameter:
        """Return the context vectors (1, K or 1, M, width)."""
        return self.learner.context

    def before_step(self, step: int) -> None:
        """See `PromptLearner.before_step`."""
        self.learner.before_step(step)

    def forward(self, text: TextTower) -> Tensor:
        """Return text features (2, K, D), negative and positive half, unnormalised."""
        read = self.learner(text)[0] + self.offset
        halves = [self.free, read] if self.learned == "positive" else [read, self.free]
        return torch.stack(halves)
