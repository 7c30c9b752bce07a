"""Sight-assisted aggregation and its alternatives: one map (B, D, H, W) from the semantic and the sight map.

With N = H·W regions as columns, q, k and v 1×1 convolutions, and α a scalar that starts at 0:

    paper             α · v(sight) Aᵀ + sight,                  A = softmax over keys of q(semantic)ᵀ k(semantic)
    released          α · v(sight) Aᵀ + (sight + semantic) / 2, same A
    cross_attention   α · v(sight) Aᵀ + semantic,               A = softmax of q(semantic)ᵀ k(sight) / √d
    symmetric         mean of cross_attention and the same with semantic and sight exchanged
    sum               sight + semantic
    concat_mlp        two 1×1 convolutions with a ReLU between, of both maps stacked
    sight             sight, without aggregation

Source: IntCLIP paper, Eq. 2–4 and Table 5; the softmax over keys (Eq. 3 sums over i) and d = D/8 (C×N in the paper)
are those of the released code. `cross_attention` and `symmetric` follow later descriptions of the method.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

AggregationVariant = Literal["paper", "released", "sum", "concat_mlp", "cross_attention", "symmetric", "sight"]

ATTENTION = "attention"
"""Name of the output's extra with the attention (B, N, N), queries by keys."""
_REDUCTION = 8


class GatedAttention(nn.Module):
    """α · v(values) Aᵀ, A = softmax over keys of q(queries)ᵀ k(keys) · scale; α, a scalar, starts at 0.

    Args:
        dim: Channels D of queries, keys and values.
        scaled: Scale by 1/√d, d = D/8 being the width of queries and keys; else by 1.
        optional: Queries may attend to nothing: one additional key has logit 0 and value 0. Keys of zeros are ignored.
    """

    def __init__(self, dim: int, *, scaled: bool, optional: bool = False) -> None:
        super().__init__()
        inner = max(dim // _REDUCTION, 1)
        self.query = nn.Conv1d(dim, inner, 1)
        self.key = nn.Conv1d(dim, inner, 1)
        self.value = nn.Conv1d(dim, dim, 1, bias=not optional)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.scale = inner**-0.5 if scaled else 1.0
        self.optional = optional

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted values (B, D, N queries) and the attention (B, N queries, N keys) of maps (B, D, N)."""
        logits = self.query(queries).transpose(1, 2) @ self.key(keys) * self.scale
        if self.optional:
            absent = ~keys.any(dim=1, keepdim=True)
            nothing = logits.new_zeros(*logits.shape[:2], 1)
            logits = torch.cat([nothing, logits.masked_fill(absent, -torch.inf)], dim=2)
            attention = logits.softmax(dim=2)[:, :, 1:]
        else:
            attention = logits.softmax(dim=2)
        return self.alpha * (self.value(values) @ attention.transpose(1, 2)), attention


class SightAssistedAggregation(nn.Module):
    """Combines a semantic and a sight map; see the module for the variants.

    At α = 0, `paper` and `released` equal their residual, and the queries and keys have no gradient, nor has the
    semantic branch in `paper`: α must change first.

    Args:
        dim: Channels D of both maps.
        variant: The formula.

    Raises:
        ValueError: Unknown variant.
    """

    def __init__(self, dim: int, *, variant: AggregationVariant = "paper") -> None:
        super().__init__()
        if variant not in get_args(AggregationVariant):
            raise ValueError(f"unknown aggregation {variant!r}; known: {', '.join(get_args(AggregationVariant))}")
        self.variant = variant
        self.attention: GatedAttention | None = None
        self.reverse: GatedAttention | None = None
        self.mlp: nn.Sequential | None = None
        if variant in ("paper", "released", "cross_attention", "symmetric"):
            self.attention = GatedAttention(dim, scaled=variant in ("cross_attention", "symmetric"))
        if variant == "symmetric":
            self.reverse = GatedAttention(dim, scaled=True)
        if variant == "concat_mlp":
            self.mlp = nn.Sequential(nn.Conv1d(2 * dim, dim, 1), nn.ReLU(), nn.Conv1d(dim, dim, 1))

    def forward(self, semantic: Tensor, sight: Tensor) -> Tensor:
        """Return the combined map (B, D, H, W) of two maps of that shape."""
        return self.attend(semantic, sight)[0]

    def attend(self, semantic: Tensor, sight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the combined map (B, D, H, W) and the attention (B, N, N), queries by keys, or None.

        The attention of `symmetric` is that of the semantic queries.
        """
        joined, attention = self._attend(semantic.flatten(2), sight.flatten(2))
        return joined.view(semantic.shape), attention

    def _attend(self, semantic: Tensor, sight: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.mlp is not None:
            return self.mlp(torch.cat([semantic, sight], dim=1)), None
        if self.attention is None:
            return (sight + semantic if self.variant == "sum" else sight), None
        keys = sight if self.variant in ("cross_attention", "symmetric") else semantic
        added, attention = self.attention(semantic, keys, sight)
        if self.reverse is not None:
            back, _ = self.reverse(sight, semantic, semantic)
            return (semantic + added + sight + back) / 2, attention
        residual = {"paper": sight, "released": (sight + semantic) / 2, "cross_attention": semantic}[self.variant]
        return added + residual, attention
