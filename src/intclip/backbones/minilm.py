"""MiniLM: a six-layer BERT encoder; the mean of its output tokens is a sentence embedding.

Wang et al., MiniLM (NeurIPS 2020), as trained for sentences by sentence-transformers (all-MiniLM-L6-v2): post-norm
BERT (Devlin et al., 2019), mean pooling over the tokens. It accepts embeddings instead of tokens.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from intclip.backbones.base import TextTower
from intclip.backbones.wordpieces import CONTEXT_LENGTH, token_rows, unknown_share
from intclip.errors import CheckpointError

LAYER_NORM_EPS = 1e-12


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each followed by a shortcut and a layer norm."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.output_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map x (T, L, width) to the same shape; mask (T, 1, 1, L) is True at tokens that can be attended to."""
        rows, length, width = x.shape
        qkv = self.qkv(x).view(rows, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = self.attention_norm(x + self.out(attended.transpose(1, 2).reshape(rows, length, width)))
        out: Tensor = self.output_norm(x + self.down(F.gelu(self.up(x))))
        return out


class MiniLM(TextTower):
    """A BERT sentence encoder of any width and depth."""

    def __init__(
        self, tokenizer: Tokenizer, *, vocabulary: int, positions: int, width: int, hidden: int, layers: int, heads: int
    ) -> None:
        super().__init__()
        self.width = width
        self.embed_dim = width
        self.context_length = min(CONTEXT_LENGTH, positions)
        self.tokenizer = tokenizer
        # An explicit weight, because the default initialisation on the meta device imports half of torch's compiler.
        self.token_embedding = nn.Embedding(vocabulary, width, _weight=torch.empty(vocabulary, width))
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.layers = nn.ModuleList(EncoderLayer(width, hidden, heads) for _ in range(layers))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return tokens (T, L), int64, [CLS] … [SEP], L the longest of these texts, padded at the end with 0.

        Raises:
            IntclipError: A text has more than `context_length` tokens.
        """
        rows = token_rows(self.tokenizer, texts, self.context_length)
        tokens = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for index, row in enumerate(rows):
            tokens[index, : len(row)] = torch.tensor(row)
        return tokens

    def vocabulary(self) -> str:
        """See `TextTower.vocabulary`."""
        return self.tokenizer.to_str()

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """See `wordpieces.unknown_share`."""
        return unknown_share(self.tokenizer, texts)

    def lengths(self, tokens: Tensor) -> Tensor:
        """Return the number of tokens of each row (T,), including start and end, without padding."""
        return (tokens != 0).sum(dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return token embeddings (T, L, width), without positions."""
        embeddings: Tensor = self.token_embedding(tokens)
        return embeddings

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Compute sentence features (T, D), unnormalised: the mean encoded token of rows with these lengths (T,)."""
        length = embeddings.shape[1]
        x = self.norm(embeddings + self.positions[:length])
        within = torch.arange(length, device=x.device) < lengths[:, None]
        mask = within[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        features: Tensor = (x * within.unsqueeze(-1)).sum(dim=1) / lengths.unsqueeze(-1)
        return features


def minilm_from_state_dict(state: Mapping[str, Tensor], tokenizer: Tokenizer, *, heads: int = 12) -> MiniLM:
    """Build a sentence encoder from the state dict of a Hugging Face `BertModel`; sizes come from its tensors.

    Args:
        state: The checkpoint; pooler and position ids, which mean pooling does not use, are ignored.
        tokenizer: From `load_tokenizer`.
        heads: Number of attention heads, which the tensors do not show.

    Raises:
        CheckpointError: Tensors are missing or unexpected; all are named.
    """
    own = own_tensors(state)
    vocabulary, width = own["token_embedding.weight"].shape
    with torch.device("meta"):
        model = MiniLM(
            tokenizer,
            vocabulary=vocabulary,
            positions=len(own["positions"]),
            width=width,
            hidden=len(own["layers.0.up.bias"]),
            layers=sum(key.endswith(".up.bias") for key in own),
            heads=heads,
        )
    model.load_state_dict(own, assign=True)
    return model


def own_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a `BertModel`'s tensors to those of a `MiniLM`; raises as `minilm_from_state_dict`."""
    left = {key: value for key, value in state.items() if not key.startswith(("pooler.", "embeddings.position_ids"))}
    missing: list[str] = []

    def take(key: str) -> Tensor:
        if key not in left:
            missing.append(key)
            return torch.empty(0)
        return left.pop(key)

    depth = len({key.split(".")[2] for key in left if key.startswith("encoder.layer.")})
    # Every token has sentence type 0, so that type's embedding is added to the positions.
    own = {
        "token_embedding.weight": take("embeddings.word_embeddings.weight"),
        "positions": _sum_or_empty(
            take("embeddings.position_embeddings.weight"), take("embeddings.token_type_embeddings.weight")[:1]
        ),
    }
    for part in ("weight", "bias"):
        own[f"norm.{part}"] = take(f"embeddings.LayerNorm.{part}")
        for index in range(depth):
            source, target = f"encoder.layer.{index}", f"layers.{index}"
            own[f"{target}.qkv.{part}"] = torch.cat(
                [take(f"{source}.attention.self.{name}.{part}") for name in ("query", "key", "value")]
            )
            for name, theirs in _LAYER_KEYS.items():
                own[f"{target}.{name}.{part}"] = take(f"{source}.{theirs}.{part}")
    if missing or depth == 0:
        raise CheckpointError(
            f"BERT checkpoint lacks: {', '.join(sorted(missing)) or 'its layers'}; supply a complete one"
        )
    if left:
        raise CheckpointError(f"BERT checkpoint has unknown tensors: {', '.join(sorted(left))}; supply a BertModel")
    return own


_LAYER_KEYS = {
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "output_norm": "output.LayerNorm",
}


def _sum_or_empty(positions: Tensor, kind: Tensor) -> Tensor:
    return positions + kind if positions.numel() and kind.numel() else positions
