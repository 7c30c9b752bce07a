"""CLIP's text transformer as a `TextTower` (Radford et al., 2021, section 2.4)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import TextTower
from intclip.backbones.file_tokenizer import TextTokenizer
from intclip.backbones.tokenizer import CLIP_TOKENS, encode, pad
from intclip.backbones.transformer import Block, BlockSpec
from intclip.clip_tokens import END
from intclip.errors import IntclipError

PAD = 0
"""Id of CLIP's padding."""


class ClipText(TextTower):
    """Causal transformer whose feature is read at the end token and projected to the joint space.

    Attention is causal, so tokens after the end token do not affect it. A batch is therefore padded to its longest
    text, not to the context length: prompts of 30 tokens cost 30, not 77. The last block is computed at the end tokens
    only, and on a CPU texts of very different lengths are split into two batches.
    """

    causal = True

    def __init__(self, architecture: Architecture, tokenizer: TextTokenizer | None = None) -> None:
        """Build the tower; weights are loaded later.

        Args:
            architecture: Sizes.
            tokenizer: For a family that does not use CLIP's tokens (MetaCLIP 2).
        """
        super().__init__()
        self.width = architecture.text_width
        self.embed_dim = architecture.embed_dim
        self.context_length = architecture.context_length
        self.end_token = architecture.end_token
        self.vocab_size = architecture.vocab_size
        self.tokenizer = tokenizer
        # An explicit weight, because the default initialisation on the meta device imports half of torch's compiler.
        weight = torch.empty(architecture.vocab_size, self.width)
        self.token_embedding = nn.Embedding(architecture.vocab_size, self.width, _weight=weight)
        self.positional_embedding = nn.Parameter(torch.empty(self.context_length, self.width))
        self.blocks = nn.Sequential(*text_blocks(architecture, causal=self.causal))
        self.ln_final = nn.LayerNorm(self.width, eps=architecture.text_eps)
        self.text_projection = nn.Parameter(torch.empty(self.width, self.embed_dim))

    def tokenize(self, texts: Sequence[str], *, truncate: bool = False) -> Tensor:
        """Return tokens (T, L), int64, L the longest of these texts, padded at the end with 0.

        Args:
            texts: Any texts; cleaned and lower-cased as in OpenAI's code.
            truncate: Truncate texts that are too long, keeping the end token, instead of raising.

        Raises:
            IntclipError: A text has more than `context_length` tokens and `truncate` is off, or the tower does not use
                CLIP's tokens and has no tokenizer.
        """
        if self.tokenizer is not None:
            return self.tokenizer.tokenize(texts, self.context_length)
        if self.vocab_size != CLIP_TOKENS or self.end_token not in (None, END):
            raise IntclipError(
                f"this text tower has {self.vocab_size} tokens where CLIP's tokenizer has {CLIP_TOKENS}; pass token ids"
            )
        return pad([encode(text, self.context_length, truncate=truncate) for text in texts])

    def vocabulary(self) -> str:
        """See `TextTower.vocabulary`."""
        return "" if self.tokenizer is None else self.tokenizer.vocabulary()

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """See `TextTower.unknown_share`; CLIP's tokens include no unknown token."""
        return super().unknown_share(texts) if self.tokenizer is None else self.tokenizer.unknown_share(texts)

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return each row's number of tokens (T,) up to the first end token: `end_token`, or the highest id."""
        ends = tokens if self.end_token is None else (tokens == self.end_token).int()
        return ends.argmax(dim=-1) + 1

    def embed(self, tokens: Tensor) -> Tensor:
        """Return token embeddings (T, L, width), without positions."""
        embedded: Tensor = self.token_embedding(tokens)
        return embedded

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Compute text features (T, D), unnormalised, of token embeddings (T, L, width) with these row lengths (T,).

        Raises:
            IntclipError: L is more than `context_length`.
        """
        self.check_length(embeddings.shape[1])
        # Elsewhere one large batch is faster, and lengths may not be readable. A converted graph would keep the
        # example's order and cut.
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined,no-untyped-call]
        if embeddings.device.type != "cpu" or traced:
            return self._encode(embeddings, lengths)
        order = lengths.argsort()
        ordered = lengths[order].tolist()
        cut = best_cut(ordered)
        if cut == len(ordered):
            return self._encode(embeddings[:, : ordered[-1]], lengths)
        parts = [
            self._encode(embeddings[rows, : int(lengths[rows[-1]])], lengths[rows])
            for rows in (order[:cut], order[cut:])
        ]
        return torch.cat(parts)[order.argsort()]

    def _encode(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        tokens = self.blocks[:-1](embeddings + self.positional_embedding[: embeddings.shape[1]])
        last = self.blocks[-1]
        assert isinstance(last, Block)
        features: Tensor = self.ln_final(last.read(tokens, lengths - 1)) @ self.text_projection
        return features


class OpenClipText(ClipText):
    """CLIP's text transformer without the causal mask, as in MobileCLIP's S models.

    All tokens attend to the padding, so texts are always padded to `context_length` tokens, and everything after a
    row's length is replaced by padding. A prompt therefore has the same features in any batch.
    """

    causal = False

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """See `ClipText.encode_embeddings`."""
        self.check_length(embeddings.shape[1])
        padding = self.token_embedding.weight[PAD].to(embeddings.dtype)
        return self._encode(padded(embeddings, lengths, padding, self.context_length), lengths)


def padded(embeddings: Tensor, lengths: Tensor, padding: Tensor, total: int) -> Tensor:
    """Pad token embeddings (T, L, W) to (T, N, W): padding (W,) replaces everything after a row's length."""
    missing = total - embeddings.shape[1]
    tokens = torch.cat([embeddings, padding.expand(embeddings.shape[0], missing, -1)], dim=1)
    within = torch.arange(total, device=tokens.device) < lengths[:, None]
    return torch.where(within.unsqueeze(-1), tokens, padding)


def text_blocks(architecture: Architecture, *, causal: bool) -> list[Block]:
    """Build the blocks of a text transformer."""
    spec = BlockSpec(
        architecture.text_width,
        architecture.text_heads,
        architecture.text_mlp,
        architecture.text_activation or architecture.activation,
        architecture.text_eps,
        causal=causal,
    )
    return [Block(spec) for _ in range(architecture.text_layers)]


def best_cut(lengths: Sequence[int]) -> int:
    """Return where to split ascending lengths into two batches, each padded to its longest, for the fewest tokens.

    Returns:
        Number of rows in the first batch; all of them if a split would save less than one token in twenty.
    """
    rows, longest = len(lengths), lengths[-1]
    tokens = [cut * lengths[cut - 1] + (rows - cut) * longest for cut in range(1, rows + 1)]
    fewest = min(tokens)
    return tokens.index(fewest) + 1 if fewest < 0.95 * rows * longest else rows
