"""Attention pooling by a learned query: the image embedding of SigLIP and Perception Encoder.

"Multihead attention pooling" (Zhai et al., Scaling Vision Transformers, 2022).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.architecture import Architecture
from intclip.backbones.base import ImageHead
from intclip.backbones.clip_vit import as_map, prefix_tokens
from intclip.backbones.families import TRAITS
from intclip.backbones.transformer import BlockSpec, plain_mlp


class QueryPool(nn.Module):
    """One learned query attends to the tokens; then a residual MLP.

    Args:
        width: Channels W of a token.
        heads: Attention heads.
        mlp: Hidden size of the MLP.
        architecture: Provides activation and epsilon.
    """

    def __init__(self, width: int, heads: int, mlp: int, architecture: Architecture) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.layernorm = nn.LayerNorm(width, eps=architecture.vision_eps)
        self.mlp = plain_mlp(width, mlp, architecture.activation)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return pooled features (B, W) of tokens (B, N, W)."""
        batch, length, width = tokens.shape
        query = F.linear(self.probe, self.in_proj_weight[:width], self.in_proj_bias[:width])
        query = query.view(1, 1, self.heads, -1).transpose(1, 2).expand(batch, -1, -1, -1)
        projected = F.linear(tokens, self.in_proj_weight[width:], self.in_proj_bias[width:])
        key, value = projected.view(batch, length, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        read = self.out_proj(F.scaled_dot_product_attention(query, key, value).flatten(1))
        pooled: Tensor = read + self.mlp(self.layernorm(read))
        return pooled

    def values(self, tokens: Tensor) -> Tensor:
        """Return the attention output for each token (B, N, W) as if it were the only one, without the MLP."""
        width = tokens.shape[-1]
        value = F.linear(tokens, self.in_proj_weight[2 * width :], self.in_proj_bias[2 * width :])
        out: Tensor = self.out_proj(value)
        return out


class MapHead(ImageHead):
    """The last norm, a learned query, and a projection if the family has one.

    Region features are W_o W_v x of each normalised patch token, at unit length: with equal keys, the query returns
    their mean (TextRegion, Xiao et al., TMLR 2025). The MLP is left out, because in training it only receives the
    summary of a photo, not single tokens.

    Args:
        architecture: That of a SigLIP or Perception Encoder model.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        traits = TRAITS[architecture.family]
        width = architecture.vision_width
        self.prefix = prefix_tokens(architecture)
        self.ln_post = nn.LayerNorm(width, eps=architecture.vision_eps)
        heads = traits.pool_heads or BlockSpec(width, architecture.vision_heads).head_count
        self.attn_pool = QueryPool(width, heads, architecture.vision_mlp or 4 * width, architecture)
        self.proj = nn.Parameter(torch.empty(width, architecture.embed_dim)) if traits.projection else None

    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W), at unit length, of tokens (B, P + HW, W)."""
        found = self._project(self.attn_pool.values(self.ln_post(deep[:, self.prefix :])))
        return as_map(F.normalize(found, dim=2))

    def pooled(self, deep: Tensor) -> Tensor:
        """Return the image embedding (B, D) of tokens (B, P + HW, W)."""
        return self._project(self.attn_pool(self.ln_post(deep)))

    def _project(self, x: Tensor) -> Tensor:
        return x if self.proj is None else x @ self.proj
