"""Fuse the branches and batch norms of MobileCLIP's training form to single convolutions.

All parts are linear, so this is exact up to rounding: a batch norm with fixed statistics scales and shifts its
convolution; parallel convolutions add up, and an identity is a kernel with a 1 at its centre (Ding et al., RepVGG,
CVPR 2021; Vasu et al., MobileOne and FastViT, 2023). Computed in double precision.
"""

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.errors import CheckpointError

EPS = 1e-5
"""Epsilon of the batch norms."""
Affine = tuple[Tensor, Tensor]
"""Weight and bias."""


def fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a MobileCLIP image tower as single convolutions, float32.

    Args:
        state: With timm's key names without prefix, in training form or already fused ("reparam_conv").

    Raises:
        CheckpointError: A part of a batch norm or of a branch is missing.
    """
    rest = _Rest(state)
    for prefix in rest.having(r"\.conv\.weight"):
        if f"{prefix}.bn.weight" in rest.left:
            rest.put(prefix, rest.behind(rest.take(f"{prefix}.conv.weight"), f"{prefix}.bn"))
    for prefix in rest.having(r"\.conv_kxk\.0\.weight"):
        weight, bias = rest.affine(f"{prefix}.conv_kxk.0")
        parts = [(weight, bias)]
        if weight.shape[-1] > 1:
            parts.append(rest.affine(f"{prefix}.conv_scale"))
        if weight.shape[-1] == 1 or prefix.endswith(".mixer"):
            parts.append(rest.behind(_identity(weight), f"{prefix}.identity"))
        rest.put(prefix, _sum(parts))
    for prefix in rest.having(r"\.large_conv\.weight"):
        rest.put(prefix, _sum([rest.affine(f"{prefix}.large_conv"), rest.affine(f"{prefix}.small_conv")]))
    for prefix in rest.having(r"\.mixer\.weight"):  # x + scale · (mixer(x) − norm(x))
        weight, bias = rest.affine(f"{prefix}.mixer")
        identity = _identity(weight)
        plain, shift = rest.behind(identity, f"{prefix}.norm.identity")
        scale = rest.take(f"{prefix}.layer_scale.gamma").flatten()
        rest.put(prefix, (identity + scale.view(-1, 1, 1, 1) * (weight - plain), scale * (bias - shift)))
    for prefix in rest.having(r"\.pos_enc\.weight"):
        weight, bias = rest.affine(f"{prefix}.pos_enc")
        rest.put(prefix, (weight + _identity(weight), bias))
    for prefix in rest.having(r"\.token_mixer\.qkv\.weight"):
        scale, shift = rest.norm(f"{prefix}.norm")
        weight = rest.take(f"{prefix}.token_mixer.qkv.weight")
        rest.put(f"{prefix}.token_mixer.qkv", (weight * scale, weight @ shift))
    for prefix in rest.having(r"\.mlp\.conv\.weight"):  # FastViT only
        scales = {"mlp.fc2": "layer_scale"}
        if f"{prefix}.token_mixer.qkv.weight" in rest.left:
            scales = {"mlp.fc2": "layer_scale_2", "token_mixer.proj": "layer_scale_1"}
        for layer, name in scales.items():
            weight, bias = rest.affine(f"{prefix}.{layer}")
            scale = rest.take(f"{prefix}.{name}.gamma").flatten()
            rest.put(f"{prefix}.{layer}", (scale.view(-1, *[1] * (weight.ndim - 1)) * weight, scale * bias))
    return {key.replace(".reparam_conv.", "."): tensor.float() for key, tensor in rest.left.items()}


class _Rest:
    """Weights that remain to be fused, in double precision."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.left = {key: tensor.detach().double() for key, tensor in state.items()}

    def having(self, ending: str) -> list[str]:
        """Return the parts of keys before this ending."""
        return [match[1] for key in self.left if (match := re.match(f"(.*){ending}$", key))]

    def take(self, key: str) -> Tensor:
        if key not in self.left:
            raise CheckpointError(f"the checkpoint does not have a whole image tower: {key} is missing")
        return self.left.pop(key)

    def affine(self, prefix: str) -> Affine:
        return self.take(f"{prefix}.weight"), self.take(f"{prefix}.bias")

    def put(self, prefix: str, affine: Affine) -> None:
        self.left[f"{prefix}.weight"], self.left[f"{prefix}.bias"] = affine

    def norm(self, prefix: str) -> Affine:
        """Return scale and shift of a batch norm."""
        parts = ("weight", "bias", "running_mean", "running_var")
        gain, shift, mean, variance = (self.take(f"{prefix}.{part}") for part in parts)
        scale = gain / (variance + EPS).sqrt()
        return scale, shift - mean * scale

    def behind(self, kernel: Tensor, norm: str) -> Affine:
        """Fold a batch norm into the convolution without bias before it."""
        scale, shift = self.norm(norm)
        return kernel * scale.view(-1, 1, 1, 1), shift


def _identity(like: Tensor) -> Tensor:
    """Return the identity kernel (C, C / groups, k, k)."""
    outputs, inputs, side, _ = like.shape
    kernel = torch.zeros_like(like)
    rows = torch.arange(outputs)
    kernel[rows, rows % inputs, side // 2, side // 2] = 1
    return kernel


def _sum(parts: list[Affine]) -> Affine:
    """Merge parallel convolutions; smaller kernels are centred in the first."""
    side = parts[0][0].shape[-1]
    weights = [F.pad(weight, [(side - weight.shape[-1]) // 2] * 4) for weight, _ in parts]
    return torch.stack(weights).sum(dim=0), torch.stack([bias for _, bias in parts]).sum(dim=0)
