"""IntCLIP for posts: before sight assists it, the semantic map asks the words; the aggregation stays IntCLIP's.

    semantic' = semantic + α · v(words) Aᵀ,   A = softmax over the words and "none" of q(semantic)ᵀ k(words) / √d

"none" has logit 0 and adds nothing, so a region need not listen, and a post without words is read as IntCLIP reads it.
README.md beside this file says more. The fusion is ours; there is no paper of it.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import ParameterGroup
from intclip.methods.intclip.model import IntCLIP, IntclipOptions

_REDUCTION = 8


class IntclipWordsOptions(IntclipOptions, frozen=True):
    """IntCLIP's options, and how words are left out.

    Attributes:
        word_dropout: How often all words of a post are left out in training, so that photos alone do as well.
    """

    word_dropout: float = Field(default=0.3, ge=0, lt=1)


class WordAttention(nn.Module):
    """What the words add to every region of a map; nothing while α, which starts at 0, has not moved.

    Args:
        dim: Channels D of map and words.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = max(dim // _REDUCTION, 1)
        self.query = nn.Linear(dim, inner)
        self.key = nn.Linear(dim, inner)
        self.value = nn.Linear(dim, dim, bias=False)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.scale = inner**-0.5

    def forward(self, regions: Tensor, words: Tensor) -> Tensor:
        """The part of the words, (B, D, H, W).

        Args:
            regions: The map that asks, (B, D, H, W).
            words: (B, L, D); a row of 0 is no word.
        """
        added: Tensor = self.attention(regions, words) @ self.value(words)
        return self.alpha * added.transpose(1, 2).reshape(regions.shape)

    def attention(self, regions: Tensor, words: Tensor) -> Tensor:
        """How much each region listens to each word, (B, N, L); what is missing to 1 listens to none."""
        logits = self.query(regions.flatten(2).transpose(1, 2)) @ self.key(words).transpose(1, 2) * self.scale
        logits = logits.masked_fill(~words.any(dim=-1)[:, None], -torch.inf)
        none = logits.new_zeros(*logits.shape[:2], 1)
        return torch.cat([none, logits], dim=-1).softmax(dim=-1)[..., 1:]


class IntclipWords(IntCLIP):
    """IntCLIP over photos, and over the words beside them where there are any."""

    Options = IntclipWordsOptions
    beside = ("words",)
    options: IntclipWordsOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: IntclipWordsOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.words = WordAttention(backbone.embed_dim)

    def parameter_groups(self) -> list[ParameterGroup]:
        """IntCLIP's, and "words" at the learning rate of its aggregation."""
        words = ParameterGroup("words", list(self.words.parameters()), self.options.lr.aggregation)
        return [*super().parameter_groups(), words]

    def _semantic_map(self, features: Features) -> Tensor:
        semantic = super()._semantic_map(features)
        words = features.get("words")
        if words is None:
            return semantic
        if self.training and self.options.word_dropout:
            kept = torch.rand(len(words), 1, 1, device=words.device) >= self.options.word_dropout
            words = words * kept
        added: Tensor = self.words(semantic, words)
        return semantic + added
