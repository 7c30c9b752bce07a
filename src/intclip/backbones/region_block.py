"""A ViT's last block with better region features; the image embedding is unchanged.

In CLIP's last block, patches attend to the whole photo, and no loss constrains their output: their similarities to
texts are nearly inverted. Two variants preserve a patch's own content:

* "values": the output of a token that attends only to itself, W_o W_v x (MaskCLIP: Zhou et al., ECCV 2022, section
3.2).
* "clear": attention of queries to queries, without the residual and the MLP (ClearCLIP: Lan et al., ECCV
  2024, section 3.3).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.backbones.transformer import Block, BlockSpec, attention_weights


class RegionBlock(Block):
    """Computes tokens before the patches as in `Block`, and patches according to `kind`.

    Args:
        spec: See `BlockSpec`.
        rotation: See `Block`.
        kind: "values" or "clear".
        prefix: Number P of tokens before the patches.
    """

    def __init__(self, spec: BlockSpec, rotation: Tensor | None, kind: Literal["values", "clear"], prefix: int) -> None:
        super().__init__(spec, rotation)
        self.kind = kind
        self.prefix = prefix

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map tokens (B, P + N, W) to tokens (B, P + N, W)."""
        seen = self.ln_1(x)
        query, key, value = self.attn.heads_of(seen)
        first = self.attn.joined(F.scaled_dot_product_attention(query[:, :, : self.prefix], key, value))
        first = x[:, : self.prefix] + self.ls_1(first)
        first = first + self.ls_2(self.mlp(self.ln_2(first)))
        if self.kind == "clear":
            value = F.scaled_dot_product_attention(query[:, :, self.prefix :], query, value)
        else:
            value = value[:, :, self.prefix :]
        return torch.cat([first, self.ls_1(self.attn.joined(value))], dim=1)

    def flow(self, x: Tensor) -> Tensor:
        """See `Block.flow`; the attention of patches has no residual."""
        flow = super().flow(x)
        if self.kind == "clear":
            query, _, _ = self.attn.heads_of(self.ln_1(x))
            patches = attention_weights(query, query).mean(dim=1)
        else:
            patches = torch.eye(x.shape[1], device=x.device).expand_as(flow)
        return torch.cat([flow[:, : self.prefix], patches[:, self.prefix :]], dim=1)
