"""Learned prompts: context vectors around each class's sentence, encoded by the frozen text encoder.

    [start, V₁ … V_M, sentence, end]     (IntCLIP paper, Eq. 1; CoOp, Zhou et al., IJCV 2022; DualCoOp, NeurIPS 2022)

In CoOp, the sentence can also be in the middle of the context or before it; see `ClassTokenPosition`.

All halves (negative and positive) of all classes are encoded in one batch, padded to the longest prompt. In evaluation,
text features are cached until the context changes.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.errors import TaxonomyError
from intclip.labels.taxonomy import Taxonomy

NEGATIVE, POSITIVE = 0, 1
"""Indices of the halves of a dual prompt."""

ClassTokenPosition = Literal["end", "middle", "front"]
"""Position of the class text, as named in CoOp's code. Closing punctuation (".", "!", "?") stays at the end.

end: [start, V₁ … V_M, words, closing, end].
middle: [start, V₁ … V_⌊M/2⌋, words, V_⌊M/2⌋₊₁ … V_M, closing, end].
front: [start, words, V₁ … V_M, closing, end].
"""

_CLOSING = (".", "!", "?")
_STD = 0.02
"""Standard deviation of the initial contexts."""


class PromptOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of learned prompts; base of the options of methods with prompts.

    Attributes:
        context_length: Number M of context vectors per prompt; 0 for only the class text.
        class_specific: One set of contexts per class, or one for all classes.
        sentence_form: Form of the class text; "fine" is the class name.
        period: Add a period to sentences without closing punctuation, as in the code of CoOp, DualCoOp and IntCLIP.
    """

    context_length: int = Field(default=16, ge=0)
    class_specific: bool = True
    sentence_form: str = "fine"
    period: bool = True

    def sentences(self, taxonomy: Taxonomy) -> list[str]:
        """Return the K sentences of the classes."""
        sentences = taxonomy.sentences(self.sentence_form)
        if not self.period:
            return sentences
        return [text if text.endswith(_CLOSING) else f"{text}." for text in map(str.rstrip, sentences)]


class PromptLearner(nn.Module):
    """Context vectors for every half and class, with the fixed token embeddings around them.

    The text tower is passed to each call, so that it is neither trained nor stored with the prompts.

    Args:
        text: Text tower, for its token embeddings.
        sentences: K class sentences, from `options.sentences`.
        options: Number of context vectors, and whether they are class-specific.
        halves: 2 for dual prompts (negative, positive), 1 for CoOp.
        class_token_position: Position of the sentence; see `ClassTokenPosition`.
        every: In training, update contexts only at every n-th step; the other steps use cached text features without a
            gradient. In small backbones, the text encoder takes most of a step's time.
        residual: Add a learned vector, initially 0, to each unit text feature (TaskRes, Yu et al., CVPR 2023).
        words: Initialise the first contexts with words such as "a photo of a"; the others are random, and surplus words
            are dropped.

    Raises:
        TaxonomyError: A sentence with its context is too long for the tower.
    """

    context: nn.Parameter
    start: Tensor
    sentence: Tensor
    lengths: Tensor
    order: Tensor | None

    def __init__(
        self,
        text: TextTower,
        sentences: Sequence[str],
        options: PromptOptions,
        *,
        halves: int = 2,
        class_token_position: ClassTokenPosition = "end",
        every: int = 1,
        residual: bool = False,
        words: str | None = None,
    ) -> None:
        super().__init__()
        context_length = options.context_length
        self.halves, self.classes, self.context_length = halves, len(sentences), context_length
        room = max(text.context_length - context_length, 0)
        lengths = [int(text.lengths(text.tokenize([sentence]))[0]) for sentence in sentences]
        for sentence, length in zip(sentences, lengths, strict=True):
            if length > room:
                raise TaxonomyError(
                    f"{sentence!r} has {length} tokens and {context_length} context vectors leave room for {room}; "
                    "choose shorter sentences or a smaller context_length"
                )
        tokens = text.tokenize(sentences)
        with torch.no_grad():
            embedded = text.embed(tokens.to(next(text.parameters()).device))
        # Not stored: derived from the sentences, which are in the bundle.
        first = text.start_tokens
        self.register_buffer("start", embedded[:, :first].clone(), persistent=False)
        self.register_buffer("sentence", embedded[:, first:].clone(), persistent=False)
        self.register_buffer("lengths", text.lengths(tokens).to(embedded.device) + context_length, persistent=False)
        order = None
        if class_token_position != "end":  # they are already there
            before = context_length // 2 if class_token_position == "middle" else 0
            words_of = [_words_before_closing(text, sentence) for sentence in sentences]
            order = _order(words_of, (first, context_length, tokens.shape[1]), before).to(embedded.device)
        self.register_buffer("order", order, persistent=False)
        self.context = nn.Parameter(
            torch.randn(halves, len(sentences) if options.class_specific else 1, context_length, text.width) * _STD
        )
        if words is not None:
            with torch.no_grad():
                token = text.tokenize([words])
                last = int(text.lengths(token)[0]) - text.end_tokens
                written = text.embed(token.to(embedded.device))[:, first:last]
                written = written[:, :context_length]
                self.context[:, :, : written.shape[1]] = written
        self.residual = nn.Parameter(torch.zeros(halves, len(sentences), text.embed_dim)) if residual else None
        self.every = every
        self._learns = True
        self._seen: Tensor | None = None
        self._features: Tensor | None = None

    def embeddings(self) -> tuple[Tensor, Tensor]:
        """Return prompt embeddings (halves · K, L, width), halves outermost, and their lengths (halves · K,)."""
        return self._around(self.context[None])

    def encode(self, text: TextTower) -> Tensor:
        """Compute text features (halves, K, D), unnormalised, without the cache."""
        embeddings, lengths = self.embeddings()
        return text.encode_embeddings(embeddings, lengths).view(self.halves, self.classes, -1)

    def encode_shifted(self, text: TextTower, shift: Tensor) -> Tensor:
        """Compute text features (B, halves, K, D), unnormalised, with a shift (B, width) of each photo's contexts.

        All B · halves · K prompts are encoded, in training and in evaluation.
        """
        context = self.context + shift[:, None, None, None].to(self.context.dtype)
        encoded = text.encode_embeddings(*self._around(context))
        # shape[0] and not len: a converted graph must accept any batch size
        return encoded.view(shift.shape[0], self.halves, self.classes, -1)

    def _around(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return prompts (B · halves · K, L, width), B outermost, with contexts (B, halves, K or 1, M, width)."""
        rows = context.shape[0]
        context = context.expand(-1, -1, self.classes, -1, -1)
        start = self.start.to(context.dtype).expand(rows, self.halves, -1, -1, -1)
        sentence = self.sentence.to(context.dtype).expand(rows, self.halves, -1, -1, -1)
        prompts = torch.cat([start, context, sentence], dim=3)
        if self.order is not None:
            prompts = prompts.gather(3, self.order[:, :, None].expand(prompts.shape))
        return prompts.flatten(0, 2), self.lengths.expand(rows, self.halves, -1).flatten()

    def before_step(self, step: int) -> None:
        """Set the training step, counted from 0; see `every`."""
        self._learns = step % self.every == 0

    def forward(self, text: TextTower) -> Tensor:
        """Return text features (halves, K, D), unnormalised; in evaluation cached until the context changes.

        The context is compared by value, so loading, averaging or moving weights is detected. An export or compilation
        uses the cache as a constant, so run the model once in evaluation mode before.
        """
        features = self._encoded(text)
        return features if self.residual is None else F.normalize(features, dim=2) + self.residual

    def _encoded(self, text: TextTower) -> Tensor:
        if self.training and self._learns:
            self._seen = self._features = None
            return self.encode(text)
        if self._features is None or not (torch.compiler.is_compiling() or self._unchanged()):
            with torch.no_grad():
                self._features = self.encode(text)
            self._seen = self.context.detach().clone()
        return self._features

    def _unchanged(self) -> bool:
        seen, now = self._seen, self.context
        same_kind = seen is not None and seen.device == now.device and seen.dtype == now.dtype
        return same_kind and seen is not None and torch.equal(seen, now)


def _words_before_closing(text: TextTower, sentence: str) -> int:
    """Return the number of tokens of a sentence before its closing punctuation, without the start token.

    All tokens count if the tower has no separate tokens for closing punctuation, or nothing precedes it.
    """
    whole, words = (text.tokenize([part])[0] for part in (sentence, sentence.rstrip(".!? ") or sentence))
    ends = (int(text.lengths(part[None])[0]) - text.end_tokens for part in (whole, words))
    count, end = (last - text.start_tokens for last in ends)
    upto = end + text.start_tokens
    return end if torch.equal(words[:upto], whole[:upto]) else count


def _order(words: Sequence[int], lengths: tuple[int, int, int], before: int) -> Tensor:
    """Return indices (K, M + length) from [start, contexts, sentence] to [start, contexts, words, contexts, rest].

    Args:
        words: Number of tokens of each class's words (K,).
        lengths: Number of start tokens (0 or 1), of contexts M, and of tokens of a padded sentence, including its
            start.
        before: Number of contexts before the words.
    """
    first, context_length, length = lengths
    contexts = range(first, first + context_length)
    behind = range(first + context_length, context_length + length)
    return torch.tensor(
        [[*range(first), *contexts[:before], *behind[:count], *contexts[before:], *behind[count:]] for count in words]
    )
