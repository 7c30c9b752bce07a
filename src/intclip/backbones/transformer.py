"""The pre-norm transformer block of all image and text towers (Radford et al., 2021, section 2.4), with its variants.

LayerScale (Touvron et al., 2021): TIPS. Rotary positions, gated MLP and inner norms (Fang et al., 2023): EVA-02; the
rotation alone: Perception Encoder.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intclip.backbones.architecture import HEAD_WIDTH, Activation
from intclip.errors import CheckpointError


@dataclass(frozen=True)
class BlockSpec:
    """Settings of a block.

    Attributes:
        width: Channels of a token.
        heads: Attention heads; None means width / 64.
        mlp: Hidden size of the MLP; None means 4 · width.
        activation: Activation of the MLP; a gated MLP always uses SiLU.
        eps: Epsilon of the layer norms.
        causal: Tokens attend only to themselves and earlier tokens.
        layer_scale: Scale the outputs of attention and MLP, per channel.
        gated: MLP(x) = W norm(silu(W_g x) · W_x x), EVA-02's SwiGLU.
        inner_norm: Normalise the heads' output before the projection.
    """

    width: int
    heads: int | None = None
    mlp: int | None = None
    activation: Activation = "quick_gelu"
    eps: float = 1e-5
    causal: bool = False
    layer_scale: bool = False
    gated: bool = False
    inner_norm: bool = False

    @property
    def head_count(self) -> int:
        """Number of attention heads.

        Raises:
            CheckpointError: The heads do not divide the width.
        """
        heads = self.heads or self.width // HEAD_WIDTH
        if heads == 0 or self.width % heads:
            raise CheckpointError(
                f"a transformer of width {self.width} cannot have {heads} heads; give their number, in a config.json"
                " beside the weights or as vision_heads and text_heads"
            )
        return heads


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise, any shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_tanh": functools.partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate each pair of channels of x (…, N, C) by the angles of its token.

    Args:
        x: Queries or keys.
        rotation: Cosine and sine (2, N, C) of each pair's angle, each repeated twice; 1 and 0 for no rotation.
    """
    turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    return x * rotation[0] + turned * rotation[1]


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Args:
        width: Channels of a token.
        heads: Number of heads; divides the width.
        causal: Tokens attend only to themselves and earlier tokens.
        norm: Epsilon of a norm of the heads' output; None for no norm.
        rotation: See `rotate`; (2, N, width / heads).
    """

    rotation: Tensor | None

    def __init__(
        self, width: int, heads: int, *, causal: bool = False, norm: float | None = None, rotation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.norm = nn.Identity() if norm is None else nn.LayerNorm(width, eps=norm)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("rotation", rotation, persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, W) to the same shape; mask (B, 1, 1, N) is True at tokens that can be attended to."""
        query, key, value = self.heads_of(x)
        return self.joined(F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal))

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of tokens (B, N, W), each (B, heads, N, W / heads), with rotary positions."""
        batch, length, width = x.shape
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.rotation is not None:
            query, key = rotate(query, self.rotation), rotate(key, self.rotation)
        return query, key, value

    def joined(self, out: Tensor) -> Tensor:
        """Concatenate and project the heads' output (B, heads, N, W / heads) to (B, N, W)."""
        mixed: Tensor = self.out_proj(self.norm(out.transpose(1, 2).flatten(2)))
        return mixed

    def weights(self, x: Tensor) -> Tensor:
        """Return the attention weights (B, heads, N, N) of tokens (B, N, W), which the fused kernel does not return."""
        query, key, _ = self.heads_of(x)
        return attention_weights(query, key)

    def values(self, x: Tensor) -> Tensor:
        """Return the output for tokens x (B, N, W) that attend only to themselves: the projected values."""
        width = x.shape[-1]
        value = F.linear(x, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        out: Tensor = self.out_proj(self.norm(value))
        return out

    def read(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return `forward` at one position of each row, (B, W), for tokens (B, N, W) and positions (B,).

        Only for attention without rotation and inner norm, as in text towers.
        """
        batch, length, width = x.shape
        picked = x[torch.arange(batch, device=x.device), positions]
        query = F.linear(picked, self.in_proj_weight[:width], self.in_proj_bias[:width])
        projected = F.linear(x, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = projected.view(batch, length, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = None
        if self.causal:
            seen = (torch.arange(length, device=x.device) <= positions[:, None])[:, None, None]
        # One query per row: (B, heads, 1, W / heads)
        out = F.scaled_dot_product_attention(query.view(batch, self.heads, 1, -1), key, value, attn_mask=seen)
        mixed: Tensor = self.out_proj(out.flatten(1))
        return mixed


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Return the softmax over keys (…, N, M) of queries (…, N, C) and keys (…, M, C)."""
    scale = query.shape[-1] ** -0.5
    weights: Tensor = (scale * query @ key.transpose(-1, -2)).softmax(dim=-1)
    return weights


class GatedMlp(nn.Module):
    """W norm(silu(W_g x) · W_x x) + b (Fang et al., EVA-02, 2023)."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden)
        self.c_fc = nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden, eps=eps)
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Any (…, W) to the same shape."""
        out: Tensor = self.c_proj(self.norm(F.silu(self.gate(x)) * self.c_fc(x)))
        return out


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        """Any (…, W) to the same shape."""
        return x * self.weight


def plain_mlp(width: int, hidden: int, activation: Activation) -> nn.Sequential:
    """Build linear, activation, linear."""
    return nn.Sequential(
        OrderedDict(c_fc=nn.Linear(width, hidden), gelu=ACTIVATIONS[activation](), c_proj=nn.Linear(hidden, width))
    )


class Block(nn.Module):
    """Attention and MLP, each with a layer norm before it and a residual connection.

    Args:
        spec: See `BlockSpec`.
        rotation: Rotation of queries and keys; see `rotate`.

    Raises:
        CheckpointError: The heads do not divide the width.
    """

    def __init__(self, spec: BlockSpec, rotation: Tensor | None = None) -> None:
        super().__init__()
        width = spec.width
        hidden = spec.mlp or 4 * width
        self.ln_1 = nn.LayerNorm(width, eps=spec.eps)
        self.attn = Attention(
            width, spec.head_count, causal=spec.causal, norm=spec.eps if spec.inner_norm else None, rotation=rotation
        )
        self.ls_1 = LayerScale(width) if spec.layer_scale else nn.Identity()
        self.ln_2 = nn.LayerNorm(width, eps=spec.eps)
        self.mlp = GatedMlp(width, hidden, spec.eps) if spec.gated else plain_mlp(width, hidden, spec.activation)
        self.ls_2 = LayerScale(width) if spec.layer_scale else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, N, W) to the same shape; see `Attention.forward` for the mask."""
        x = x + self.ls_1(self.attn(self.ln_1(x), mask))
        out: Tensor = x + self.ls_2(self.mlp(self.ln_2(x)))
        return out

    def flow(self, x: Tensor) -> Tensor:
        """Return the share of each input token (B, N, W) in each output token, (B, N, N), without the MLP.

        Rows sum to 1: half is the residual, half the mean attention over heads (Abnar and Zuidema, ACL 2020).
        """
        mean = self.attn.weights(self.ln_1(x)).mean(dim=1)
        return (mean + torch.eye(x.shape[1], device=x.device)) / 2

    def read(self, x: Tensor, positions: Tensor) -> Tensor:
        """Return `forward` at one position of each row, (B, W), for tokens (B, N, W) and positions (B,).

        For the last block before a read-out: only keys and values are computed at every position, a sixth of the work.
        """
        picked = x[torch.arange(x.shape[0], device=x.device), positions] + self.attn.read(self.ln_1(x), positions)
        out: Tensor = picked + self.mlp(self.ln_2(picked))
        return out
