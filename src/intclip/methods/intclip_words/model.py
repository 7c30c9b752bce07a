"""IntCLIP for posts: the semantic map attends to the words before IntCLIP's aggregation.

    semantic' = semantic + α · v(words) Aᵀ,   A = softmax over the words and "none" of q(semantic)ᵀ k(words) / √d

"none" has logit 0 and value 0, so a region can ignore the words, and a post without words gives IntCLIP's output.
The fusion is ours and unpublished; see README.md in this folder.
"""

import torch
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.aggregation import GatedAttention
from intclip.methods.base import ParameterGroup
from intclip.methods.intclip.model import IntCLIP, IntclipOptions


class IntclipWordsOptions(IntclipOptions, frozen=True):
    """IntCLIP's options, and dropout of words.

    Attributes:
        word_dropout: Probability of dropping all words of a post in training, so that photos alone work too.
    """

    word_dropout: float = Field(default=0.3, ge=0, lt=1)


class IntclipWords(IntCLIP):
    """IntCLIP on photos and their words, if any."""

    Options = IntclipWordsOptions
    extra_inputs = ("words",)
    options: IntclipWordsOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: IntclipWordsOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.words = GatedAttention(backbone.embed_dim, scaled=True, optional=True)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return IntCLIP's groups, and "words" with the learning rate of its aggregation."""
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
        keys = words.transpose(1, 2)
        added: Tensor = self.words(semantic.flatten(2), keys, keys)[0]
        return semantic + added.view(semantic.shape)
