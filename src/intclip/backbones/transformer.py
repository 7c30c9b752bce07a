"""The pre-norm transformer block that CLIP's image and text towers share (Radford et al., 2021, section 2.4)."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intclip.backbones.architecture import HEAD_WIDTH, Activation
from intclip.errors import CheckpointError


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        width: Channels of a token.
        heads: Number of heads; divides the width.
        causal: Let a token attend to itself and the tokens before it only.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, W) to tokens (B, N, W)."""
        batch, length, width = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # (B, N, 3W) to queries, keys and values, each (B, heads, N, W / heads)
        query, key, value = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        mixed: Tensor = self.out_proj(out.transpose(1, 2).reshape(batch, length, width))
        return mixed

    def read(self, x: Tensor, positions: Tensor) -> Tensor:
        """What `forward` gives at one position of each row, (B, W), of tokens (B, N, W) and positions (B,)."""
        batch, length, width = x.shape
        picked = x[torch.arange(batch, device=x.device), positions]
        query = F.linear(picked, self.in_proj_weight[:width], self.in_proj_bias[:width])
        projected = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = projected.view(batch, length, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = None
        if self.causal:
            seen = (torch.arange(length, device=x.device) <= positions[:, None])[:, None, None]
        # One query a row: (B, heads, 1, W / heads)
        out = F.scaled_dot_product_attention(query.view(batch, self.heads, 1, -1), key, value, attn_mask=seen)
        mixed: Tensor = self.out_proj(out.flatten(1))
        return mixed


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside an identity.

    Args:
        width: Channels of a token.
        heads: Attention heads; None means width / 64.
        mlp: Hidden size of the MLP; None means 4 · width.
        activation: Of the MLP.
        causal: Let a token attend to itself and the tokens before it only.

    Raises:
        CheckpointError: The heads do not divide the width.
    """

    def __init__(
        self, width: int, heads: int | None, mlp: int | None, activation: Activation, *, causal: bool = False
    ) -> None:
        super().__init__()
        heads = heads or width // HEAD_WIDTH
        if heads == 0 or width % heads:
            raise CheckpointError(f"a transformer of width {width} cannot have {heads} heads; tell the number of heads")
        hidden = mlp or 4 * width
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, hidden),
                gelu=QuickGELU() if activation == "quick_gelu" else nn.GELU(),
                c_proj=nn.Linear(hidden, width),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, W) to tokens (B, N, W)."""
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out

    def read(self, x: Tensor, positions: Tensor) -> Tensor:
        """What `forward` gives at one position of each row, (B, W), of tokens (B, N, W) and positions (B,).

        For the last block before a read-out: only keys and values are computed at every position, a sixth of the work.
        """
        picked = x[torch.arange(x.shape[0], device=x.device), positions] + self.attn.read(self.ln_1(x), positions)
        out: Tensor = picked + self.mlp(self.ln_2(picked))
        return out
