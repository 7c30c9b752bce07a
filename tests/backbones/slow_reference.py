"""Plain reference implementation of CLIP's image and text towers on a state dict in OpenAI's layout.

It uses no modules, no fused kernels and none of the package's code; the towers are compared with it at odd sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resnet_stages(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Return the maps after layer1 to layer4."""

    def norm(name: str, x: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        gain, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        scaled = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return scaled * gain[:, None, None] + bias[:, None, None]

    def convolve(name: str, x: Tensor, stride: int = 1) -> Tensor:
        kernel = state[f"{name}.weight"]
        return F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)

    def halve(x: Tensor) -> Tensor:
        return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4

    for index in (1, 2, 3):
        x = convolve(f"visual.conv{index}", x, stride=2 if index == 1 else 1)
        x = norm(f"visual.bn{index}", x).clamp(min=0)
    x = halve(x)
    stages = []
    for stage in (1, 2, 3, 4):
        block = 0
        while f"visual.layer{stage}.{block}.conv1.weight" in state:
            name = f"visual.layer{stage}.{block}"
            stride_here = stage > 1 and block == 0
            out = norm(f"{name}.bn1", convolve(f"{name}.conv1", x)).clamp(min=0)
            out = norm(f"{name}.bn2", convolve(f"{name}.conv2", out)).clamp(min=0)
            out = norm(f"{name}.bn3", convolve(f"{name}.conv3", halve(out) if stride_here else out))
            if f"{name}.downsample.0.weight" in state:
                pooled = halve(x) if stride_here else x
                x = norm(f"{name}.downsample.1", convolve(f"{name}.downsample.0", pooled))
            x = (out + x).clamp(min=0)
            block += 1
        stages.append(x)
    return stages


def attention_pool(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return the pool's outputs (B, 1 + HW, D) by torch's multi-head attention, with every token as a query."""
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens])
    tokens = tokens + state["visual.attnpool.positional_embedding"][:, None]
    width = tokens.shape[-1]
    part = {name: state[f"visual.attnpool.{name}_proj.weight"] for name in "qkvc"}
    bias = {name: state[f"visual.attnpool.{name}_proj.bias"] for name in "qkvc"}
    out, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        embed_dim_to_check=width,
        num_heads=width // 64,
        in_proj_weight=None,
        in_proj_bias=torch.cat([bias["q"], bias["k"], bias["v"]]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=part["c"],
        out_proj_bias=bias["c"],
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=part["q"],
        k_proj_weight=part["k"],
        v_proj_weight=part["v"],
    )
    return out.transpose(0, 1)


def pool_regions(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Region features (B, D, H, W), one position at a time: position, value projection, output projection."""
    batch, _, height, width = x.shape
    regions = []
    for y in range(height):
        for z in range(width):
            token = x[:, :, y, z] + state["visual.attnpool.positional_embedding"][1 + y * width + z]
            token = token @ state["visual.attnpool.v_proj.weight"].T + state["visual.attnpool.v_proj.bias"]
            token = token @ state["visual.attnpool.c_proj.weight"].T + state["visual.attnpool.c_proj.bias"]
            regions.append(token)
    return torch.stack(regions, dim=-1).view(batch, -1, height, width)


def transformer(state: dict[str, Tensor], prefix: str, x: Tensor, *, causal: bool, quick: bool) -> list[Tensor]:
    """Return tokens (B, N, W) after each block, computed head by head."""
    outputs = []
    index = 0
    while f"{prefix}.{index}.ln_1.weight" in state:
        part = {k.removeprefix(f"{prefix}.{index}."): v for k, v in state.items() if k.startswith(f"{prefix}.{index}.")}
        normed = F.layer_norm(x, x.shape[-1:], part["ln_1.weight"], part["ln_1.bias"])
        projected = normed @ part["attn.in_proj_weight"].T + part["attn.in_proj_bias"]
        query, key, value = projected.chunk(3, dim=-1)
        heads = []
        for start in range(0, x.shape[-1], 64):
            q, k, v = (whole[..., start : start + 64] for whole in (query, key, value))
            scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            if causal:
                later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
                scores = scores.masked_fill(later, -math.inf)
            heads.append(scores.softmax(dim=-1) @ v)
        x = x + torch.cat(heads, dim=-1) @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
        normed = F.layer_norm(x, x.shape[-1:], part["ln_2.weight"], part["ln_2.bias"])
        hidden = normed @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"]
        gate = torch.sigmoid(1.702 * hidden) if quick else (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = x + (hidden * gate) @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
        outputs.append(x)
        index += 1
    return outputs
