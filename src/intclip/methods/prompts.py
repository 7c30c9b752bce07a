"""Learned prompts: context vectors around each class's sentence, encoded by the frozen text encoder.

    [start, V₁ … V_M, sentence, end]     (IntCLIP paper, Eq. 1; CoOp, Zhou et al., IJCV 2022; DualCoOp, NeurIPS 2022)

CoOp also has the sentence in the middle of the context, or in front of it; see `ClassTokenPosition`.

All halves (negative and positive) of all classes go through the encoder in one batch, no longer than the longest
prompt. In evaluation the text features are kept until the context changes.
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
"""Order of the halves of a dual prompt along their axis."""

ClassTokenPosition = Literal["end", "middle", "front"]
"""Where the class's words stand, in the names of CoOp's code. What closes a sentence (".", "!", "?") stays at its end.

end: [start, V₁ … V_M, words, closing, end].
middle: [start, V₁ … V_⌊M/2⌋, words, V_⌊M/2⌋₊₁ … V_M, closing, end].
front: [start, words, V₁ … V_M, closing, end].
"""

_CLOSING = (".", "!", "?")
_STD = 0.02
"""Standard deviation of the initial contexts."""


class PromptOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of learned prompts, which the options of a method that has them inherit.

    Attributes:
        context_length: Number M of context vectors a prompt; 0 leaves the class's words.
        class_specific: One set of contexts per class, or one for all classes.
        sentence_form: Form of the class text; "fine" is the name.
        period: End each sentence with a period where it has no closing punctuation, as the code of CoOp, DualCoOp and
            IntCLIP does.
    """

    context_length: int = Field(default=16, ge=0)
    class_specific: bool = True
    sentence_form: str = "fine"
    period: bool = True

    def sentences(self, taxonomy: Taxonomy) -> list[str]:
        """The K sentences of the classes."""
        sentences = taxonomy.sentences(self.sentence_form)
        if not self.period:
            return sentences
        return [text if text.endswith(_CLOSING) else f"{text}." for text in map(str.rstrip, sentences)]


class PromptLearner(nn.Module):
    """Context vectors for every half and class, and the fixed token embeddings around them.

    The text tower is passed to each call and not held, so that it is neither trained nor stored with the prompts.

    Args:
        text: Text tower, for its token embeddings.
        sentences: K class sentences, as `options.sentences` gives them.
        options: Number of context vectors, and whose they are.
        halves: 2 for dual prompts (negative, positive), 1 for CoOp.
        class_token_position: Where the sentence stands; see `ClassTokenPosition`.
        every: In training, contexts learn at every n-th step only; the steps between read the text features
            of the contexts as they are, without a gradient. The text encoder is most of a small backbone's step.
        residual: Add a learned vector to each text feature of length 1 (TaskRes, Yu et al., CVPR 2023). It starts at 0.
        words: What the first contexts start as, such as "a photo of a"; the others start random, words too many are
            left out.

    Raises:
        TaxonomyError: A sentence is too long for the tower once the context is added.
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
        # Not stored: derived from the sentences themselves, which the bundle has.
        first = text.start_tokens
        self.register_buffer("start", embedded[:, :first].clone(), persistent=False)
        self.register_buffer("sentence", embedded[:, first:].clone(), persistent=False)
        self.register_buffer("lengths", text.lengths(tokens).to(embedded.device) + context_length, persistent=False)
        order = None
        if class_token_position != "end":  # there they stand already
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
        """Prompt embeddings (halves · K, L, width), halves outermost, and their lengths (halves · K,)."""
        return self._around(self.context[None])

    def encode(self, text: TextTower) -> Tensor:
        """Text features (halves, K, D), unnormalised, computed anew."""
        embeddings, lengths = self.embeddings()
        return text.encode_embeddings(embeddings, lengths).view(self.halves, self.classes, -1)

    def encode_shifted(self, text: TextTower, shift: Tensor) -> Tensor:
        """Text features (B, halves, K, D), unnormalised, with (B, width) added to every context vector of each photo.

        All B · halves · K prompts go through the encoder, in training and in evaluation.
        """
        context = self.context + shift[:, None, None, None].to(self.context.dtype)
        encoded = text.encode_embeddings(*self._around(context))
        # shape[0] and not len: a converted graph must take any batch
        return encoded.view(shift.shape[0], self.halves, self.classes, -1)

    def _around(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts (B · halves · K, L, width) of contexts (B, halves, K or 1, M, width), B outermost, and lengths."""
        rows = context.shape[0]
        context = context.expand(-1, -1, self.classes, -1, -1)
        start = self.start.to(context.dtype).expand(rows, self.halves, -1, -1, -1)
        sentence = self.sentence.to(context.dtype).expand(rows, self.halves, -1, -1, -1)
        prompts = torch.cat([start, context, sentence], dim=3)
        if self.order is not None:
            prompts = prompts.gather(3, self.order[:, :, None].expand(prompts.shape))
        return prompts.flatten(0, 2), self.lengths.expand(rows, self.halves, -1).flatten()

    def before_step(self, step: int) -> None:
        """Tell which step of training comes, counted from 0; see `every`."""
        self._learns = step % self.every == 0

    def forward(self, text: TextTower) -> Tensor:
        """Text features (halves, K, D), not of length 1; in evaluation from memory while the context is the same.

        The comparison is by value, so that loading, averaging or moving weights needs no notice; an export or a
        compilation takes what is in memory as a constant, so run once in evaluation before.
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
    """Number of tokens of a sentence, start and end not counted, up to its closing punctuation.

    All of them where a tower has no tokens of their own for what closes the sentence, or nothing stands before it.
    """
    whole, words = (text.tokenize([part])[0] for part in (sentence, sentence.rstrip(".!? ") or sentence))
    ends = (int(text.lengths(part[None])[0]) - text.end_tokens for part in (whole, words))
    count, end = (last - text.start_tokens for last in ends)
    upto = end + text.start_tokens
    return end if torch.equal(words[:upto], whole[:upto]) else count


def _order(words: Sequence[int], lengths: tuple[int, int, int], before: int) -> Tensor:
    """Places (K, M + length) in [start, contexts, sentence] that give [start, contexts, words, contexts, rest].

    Args:
        words: Number of tokens of each class's words (K,).
        lengths: Number of start tokens (0 or 1), of contexts M, and of tokens of a padded sentence, its start counted.
        before: Number of contexts before the words.
    """
    first, context_length, length = lengths
    contexts = range(first, first + context_length)
    behind = range(first + context_length, context_length + length)
    return torch.tensor(
        [[*range(first), *contexts[:before], *behind[:count], *contexts[before:], *behind[count:]] for count in words]
    )
