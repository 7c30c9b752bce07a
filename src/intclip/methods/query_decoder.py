"""Query decoder: every label attends to a feature map and predicts its own logit.

Liu et al., Query2Label (arXiv 2107.10834), as in its released code. For N = H·W regions x with positions p:

    encoder layer   x ← LN(x + SA(q = k = x + p, v = x));  x ← LN(x + FFN(x))
    decoder layer   h ← LN(h + CA(q = h + e, k = x + p, v = x));  h ← LN(h + FFN(h))
    logit           z_k = w_k · h_k + b_k

with label embeddings e (K, d), initially h = 0. The released code leaves out the decoder's self-attention, an option
here. Layers and their parts are public, so that a method can call them one by one.
"""

import math
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.errors import RecipeError


class DecoderOptions(BaseModel, frozen=True, extra="forbid"):
    """Size and shape of a query decoder; the defaults are Query2Label's.

    Attributes:
        dim: Width d; None uses the map's channels without projection, as in the released code, or the next suitable
            width if heads or positions do not divide them.
        heads: Heads of every attention; must divide d.
        feedforward: Hidden width of the feed-forward networks; None is 4 d.
        dropout: Dropout on attention weights, hidden units and every branch.
        encoder_layers: Self-attention layers over the regions.
        decoder_layers: Cross-attention layers of the labels.
        self_attention: Labels also attend to each other in the decoder.
        positions: Positions added to regions as queries and keys: sines and cosines, or none.
    """

    dim: int | None = Field(default=None, gt=0)
    heads: int = Field(default=4, gt=0)
    feedforward: int | None = Field(default=None, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    encoder_layers: int = Field(default=1, ge=0)
    decoder_layers: int = Field(default=2, ge=1)
    self_attention: bool = False
    positions: Literal["sine", "none"] = "sine"


class FeedForward(nn.Module):
    """Residual network of two linear layers with a ReLU, then a layer norm."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, dim), nn.Dropout(dropout)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, d) to (…, d)."""
        out: Tensor = self.norm(x + self.layers(x))
        return out


class EncoderLayer(nn.Module):
    """Self-attention of regions."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, hidden, dropout)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """Map regions (B, N, d) with positions (N, d) to regions (B, N, d)."""
        placed = x + positions
        read, _ = self.attention(placed, placed, x, need_weights=False)
        out: Tensor = self.feedforward(self.norm(x + self.dropout(read)))
        return out


class DecoderLayer(nn.Module):
    """Cross-attention of labels to regions, optionally after self-attention of labels."""

    def __init__(self, dim: int, heads: int, hidden: int, dropout: float, *, self_attention: bool = False) -> None:
        super().__init__()
        self.self_attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True) if self_attention else None
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feedforward = FeedForward(dim, hidden, dropout)

    def forward(
        self, hidden: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, *, attention: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return label states (B, K, d), and with `attention` the labels' attention to regions (B, K, N).

        Args:
            hidden: Label states (B, K, d) of the previous layer; initially zeros.
            queries: Label embeddings, (K, d) or (B, K, d), added to queries.
            memory: Regions (B, N, d).
            positions: Positions (N, d) of the regions.
            attention: Also return the attention, mean over heads.
        """
        if self.self_attention is not None and self.self_norm is not None:
            asked = hidden + queries
            read, _ = self.self_attention(asked, asked, hidden, need_weights=False)
            hidden = self.self_norm(hidden + self.dropout(read))
        read, shares = self.attention(hidden + queries, memory + positions, memory, need_weights=attention)
        return self.feedforward(self.norm(hidden + self.dropout(read))), shares


class QueryDecoder(nn.Module):
    """Computes one state per label from a feature map and label embeddings.

    Args:
        channels: Channels of the map.
        options: Size and shape.

    Attributes:
        dim: Width d of label embeddings and states.
        encoder: Encoder layers.
        layers: Decoder layers.
        norm: Layer norm of the last layer's states.

    Raises:
        RecipeError: The heads do not divide d, or d is not a multiple of 4 with sine positions.
    """

    def __init__(self, channels: int, options: DecoderOptions) -> None:
        super().__init__()
        self.options = options
        step = math.lcm(options.heads, 4)
        self.dim = options.dim or step * math.ceil(channels / step)
        if self.dim % options.heads:
            raise RecipeError(
                f"decoder.heads {options.heads} must divide its width {self.dim}; set decoder.dim or heads"
            )
        if options.positions == "sine" and self.dim % 4:
            raise RecipeError(f"sine positions need a decoder.dim divisible by 4, not {self.dim}; set decoder.dim")
        self.project = nn.Identity() if self.dim == channels else nn.Conv2d(channels, self.dim, 1)
        size = (self.dim, options.heads, options.feedforward or 4 * self.dim, options.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(*size) for _ in range(options.encoder_layers))
        self.layers = nn.ModuleList(
            DecoderLayer(*size, self_attention=options.self_attention) for _ in range(options.decoder_layers)
        )
        self.norm = nn.LayerNorm(self.dim)
        for parameter in (*self.encoder.parameters(), *self.layers.parameters()):
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return encoded regions (B, N, d) and their positions (N, d) of a map (B, C, H, W)."""
        height, width = features.shape[2:]
        x = self.project(features).flatten(2).transpose(1, 2)
        if self.options.positions == "sine":
            positions = sine_positions(height, width, self.dim).to(x)
        else:
            positions = x.new_zeros(height * width, self.dim)
        for layer in self.encoder:
            x = layer(x, positions)
        return x, positions

    def forward(self, features: Tensor, queries: Tensor, *, attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Return label states (B, K, d), and with `attention` the last layer's attention (B, K, H, W), with sum 1.

        Args:
            features: Map (B, C, H, W).
            queries: Label embeddings, (K, d) or (B, K, d).
            attention: Also return the attention, mean over heads.
        """
        memory, positions = self.encode(features)
        hidden = torch.zeros_like(queries).expand(memory.shape[0], -1, -1)
        shares: Tensor | None = None
        for index, layer in enumerate(self.layers, start=1):
            last = index == len(self.layers)
            hidden, shares = layer(hidden, queries, memory, positions, attention=attention and last)
        return self.norm(hidden), None if shares is None else shares.view(*shares.shape[:2], *features.shape[2:])


class GroupLinear(nn.Module):
    """One linear score per label: z_k = w_k · h_k + b_k, weights and biases from U(±d^-½).

    Args:
        classes: K.
        dim: d.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        bound = dim**-0.5
        self.weight = nn.Parameter(torch.empty(classes, dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(classes).uniform_(-bound, bound))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return logits (B, K) of label states (B, K, d)."""
        # Not (hidden * weight).sum(): OpenVINO fuses such a sum with the bias, with wrong results for batches of K
        # photos.
        return (hidden[:, :, None] @ self.weight[:, :, None]).flatten(1) + self.bias


def sine_positions(height: int, width: int, dim: int, *, temperature: float = 10_000) -> Tensor:
    """Return sines and cosines of row and column, (H·W, d): rows in the first half of d, columns in the second.

    Rows and columns are counted from 1 and scaled so that the last is 2π (Carion et al., DETR, 2020).

    Args:
        height: H.
        width: W.
        dim: d, a multiple of 4.
        temperature: Base of the frequencies.
    """
    half = dim // 2
    frequencies = temperature ** (2 * (torch.arange(half) // 2) / half)

    def encode(count: int) -> Tensor:
        angles = torch.arange(1, count + 1)[:, None] / count * (2 * math.pi) / frequencies
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)

    rows = encode(height)[:, None].expand(height, width, half)
    columns = encode(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
