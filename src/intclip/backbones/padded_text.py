"""Text transformers without a causal mask: SigLIP's and TIPS's."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import TextTower
from intclip.backbones.clip_text import padded, text_blocks
from intclip.backbones.file_tokenizer import TextTokenizer
from intclip.errors import IntclipError

DEFAULT_PAD = 1
SINUSOID_BASE = 10000.0


class OpenText(TextTower):
    """Common base: a tokenizer from a file, no causal mask.

    Args:
        architecture: Sizes.
        tokenizer: None for a tower that accepts only token ids.
    """

    start_tokens = 0

    def __init__(self, architecture: Architecture, tokenizer: TextTokenizer | None) -> None:
        super().__init__()
        self.width = architecture.text_width
        self.embed_dim = architecture.embed_dim
        self.context_length = architecture.context_length
        self.tokenizer = tokenizer
        self.pad_id = DEFAULT_PAD if tokenizer is None or tokenizer.pad_id is None else tokenizer.pad_id
        weight = torch.empty(architecture.vocab_size, self.width)
        self.token_embedding = nn.Embedding(architecture.vocab_size, self.width, _weight=weight)
        self.blocks = nn.Sequential(*text_blocks(architecture, causal=False))
        self.ln_final = nn.LayerNorm(self.width, eps=architecture.text_eps)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return tokens (T, L), int64, L the longest of these texts, padded at the end.

        Raises:
            IntclipError: A text has more than `context_length` tokens, or the tower has no tokenizer.
        """
        return self._tokens().tokenize(texts, self.context_length)

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Return the share of unknown tokens in each text, in [0, 1]."""
        return self._tokens().unknown_share(texts)

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return the number of tokens of each row (T,), without padding at the end."""
        places = torch.arange(1, tokens.shape[1] + 1, device=tokens.device)
        return (places * (tokens != self.pad_id)).amax(dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return token embeddings (T, L, width), without positions."""
        embedded: Tensor = self.token_embedding(tokens)
        return embedded

    def _tokens(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise IntclipError(
                "this text tower has no tokenizer: put the tokenizer.json of these weights beside them"
                " (processor.save_pretrained writes it), or pass token ids"
            )
        return self.tokenizer


class PaddedText(OpenText):
    """SigLIP's text transformer (Zhai et al., 2023): always `context_length` tokens, read at the last of them.

    Padding is part of the model: all tokens attend to it, and the last token is usually padding. Everything after a
    row's length is replaced by padding, so a prompt has the same features in any batch.
    """

    def __init__(self, architecture: Architecture, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__(architecture, tokenizer)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, self.width))
        self.text_projection = nn.Parameter(torch.empty(self.width, self.embed_dim))
        self.text_projection_bias = nn.Parameter(torch.empty(self.embed_dim))

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return the number of tokens of each row (T,), including the end token, without padding.

        If padding and end are the same token (SigLIP's first version), the first of them is the end.
        """
        lengths = super().lengths(tokens)
        end = None if self.tokenizer is None else getattr(self.tokenizer, "end_id", None)
        return (lengths + 1).clamp(max=self.context_length) if end == self.pad_id else lengths

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute text features (T, D), unnormalised, of tokens (T, L), padded after L."""
        whole = torch.full((tokens.shape[0],), tokens.shape[1], device=tokens.device)
        return self.encode_embeddings(self.embed(tokens), whole)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Text features (T, D), unnormalised, of token embeddings (T, L, width) whose rows have these lengths.

        Raises:
            IntclipError: L is more than `context_length`.
        """
        self.check_length(embeddings.shape[1])
        padding = self.token_embedding.weight[self.pad_id].to(embeddings.dtype)
        tokens = padded(embeddings, lengths, padding, self.context_length)
        tokens = self.blocks[:-1](tokens + self.positional_embedding)
        last = self.blocks[-1]
        read = last.read(tokens, torch.full_like(lengths, self.context_length - 1))  # type: ignore[operator]
        features: Tensor = self.ln_final(read) @ self.text_projection + self.text_projection_bias
        return features


class MeanText(OpenText):
    """TIPS's text transformer (Maninis et al., 2025): sinusoidal positions, the mean of a text's own tokens."""

    end_tokens = 0
    pooling_epsilon = 1e-8

    def __init__(self, architecture: Architecture, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__(architecture, tokenizer)
        if tokenizer is None:
            self.pad_id = 0
        self.register_buffer("positions", sinusoids(self.context_length, self.width), persistent=False)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Text features (T, D), unnormalised, of token embeddings (T, L, width) whose rows have these lengths.

        Raises:
            IntclipError: L is more than `context_length`.
        """
        length = embeddings.shape[1]
        self.check_length(length)
        assert isinstance(self.positions, Tensor)
        tokens = embeddings * self.width**0.5 + self.positions[:length]
        lengths = lengths.clamp_min(1)  # an empty text is one token of padding
        within = torch.arange(length, device=tokens.device) < lengths[:, None]
        for block in self.blocks:
            tokens = block(tokens, within[:, None, None, :])
        tokens = self.ln_final(tokens) * within.unsqueeze(-1)
        features: Tensor = tokens.sum(dim=1) / (lengths.unsqueeze(-1) + self.pooling_epsilon)
        return features


def sinusoids(length: int, width: int) -> Tensor:
    """Positions (L, W): sines of all frequencies, then cosines (as in Tensor2Tensor and TIPS)."""
    half = width // 2
    bands = torch.exp(torch.arange(half, dtype=torch.float32, device="cpu") * -(math.log(SINUSOID_BASE) / (half - 1)))
    angles = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * bands
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(table, (0, width - 2 * half))
