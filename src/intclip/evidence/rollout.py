"""Attention rollout of a ViT: how much of each patch contributes to what a label reads.

Abnar and Zuidema, Quantifying Attention Flow in Transformers, ACL 2020: R = Π (A_l + 1)/2 over the blocks, A_l the
attention of block l averaged over its heads and 1 the identity. Rollout itself is independent of labels. If a
method pools regions with label-specific weights, the map is the weighted mean of their rows of R; else the row of the
class token, or the mean of the patches' rows if there is none.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.backbones.clip_vit import PatchEmbedding, VitHead
from intclip.backbones.transformer import Block
from intclip.errors import IntclipError
from intclip.methods.base import Method
from intclip.methods.branches import Branch
from intclip.methods.prompts import POSITIVE
from intclip.methods.region_pooling import HALVES_PREFIX


@torch.no_grad()
def rollout(method: Method, pixels: Tensor, index: int) -> dict[str, npt.NDArray[np.float32]]:
    """Compute attention rollout (h, w): "sight" (frozen), "semantic" (trained), and their mean "fused".

    Args:
        method: In evaluation mode, on a ViT.
        pixels: (1, 3, S, S).
        index: Index of the label.

    Raises:
        IntclipError: The backbone is not a ViT.
    """
    backbone = method.backbone
    shallow, deep = _blocks(backbone.trunk), _blocks(backbone.deep)
    if not deep or not isinstance(next(iter(backbone.trunk.children()), None), PatchEmbedding):
        raise IntclipError(f"attention rollout needs a ViT; {backbone.name} has no attention: use gradcam or regions")
    tokens = next(iter(backbone.trunk.children()))(pixels)
    branches = [module for module in method.modules() if isinstance(module, Branch)]
    towers: dict[str, tuple[Tensor, list[Block]]] = {}
    if set(method.needs) != {"trunk"} and set(method.needs) != {"pixels"}:
        towers["sight"] = tokens, shallow + deep
    for branch in branches[:1]:
        embeddings = [module for module in branch.modules() if isinstance(module, PatchEmbedding)]
        # A copy of the whole tower has its own embedding; a copy of the deep layers continues from the trunk.
        own = (embeddings[0](pixels), []) if embeddings else (tokens, shallow)
        towers["semantic"] = own[0], own[1] + _blocks(branch)
    reading = _reading(method, pixels, index, tokens.shape[1])
    maps = {name: reading @ attention_flow(blocks, start)[0] for name, (start, blocks) in towers.items()}
    if len(maps) > 1:
        maps["fused"] = torch.stack(list(maps.values())).mean(dim=0)
    count = math.prod(backbone.grid)
    return {name: row[-count:].view(backbone.grid).cpu().numpy() for name, row in maps.items()}


def attention_flow(blocks: Iterable[Block], tokens: Tensor) -> Tensor:
    """Compute R (B, T, T): row t is the share of each input token in output token t; rows sum to 1.

    Args:
        blocks: In order.
        tokens: (B, T, W), input of the first block.
    """
    flow = torch.eye(tokens.shape[1], device=tokens.device).expand(len(tokens), -1, -1)
    for block in blocks:
        flow = block.flow(tokens) @ flow
        tokens = block(tokens)
    return flow


def _reading(method: Method, pixels: Tensor, index: int, length: int) -> Tensor:
    """Return the weights (T,) of the last tokens in the label's logit, patches after the others."""
    output = method(method.backbone.features(pixels, method.needs), maps=True)
    halves = [value for name, value in output.extras.items() if name.startswith(HALVES_PREFIX)]
    count = math.prod(method.backbone.grid)
    weights = torch.zeros(length, device=pixels.device)
    if halves:
        fused = output.extras.get(f"{HALVES_PREFIX}fused", halves[0])
        weights[-count:] = fused[0, POSITIVE, index].flatten().softmax(dim=0)
    elif "pooled" in method.needs and length > count and isinstance(method.backbone.head, VitHead):
        weights[0] = 1
    else:
        weights[-count:] = 1 / count
    return weights


def _blocks(module: nn.Module) -> list[Block]:
    return [part for part in module.modules() if isinstance(part, Block)]
