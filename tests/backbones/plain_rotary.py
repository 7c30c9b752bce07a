"""EVA-02-CLIP's and Perception Encoder's towers, written plainly and token by token from their state dicts.

EVA-02 (Fang et al., 2023) and Perception Encoder (Bolya et al., 2025) in timm's key names. Nothing here is shared
with the package: loops over heads, positions as complex numbers.
"""

import math

import torch
import torch.nn.functional as F


def norm(state, name, x, eps):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def turn(head, angles):
    """Pairs of channels (N, C) as complex numbers, each turned by its angle (N, C / 2)."""
    pairs = torch.view_as_complex(head.reshape(len(head), -1, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(1)


def angles_of(grid, channels, *, scale, offset, columns_first):
    """Angle (1 + grid², C / 2) of each pair; the class token does not turn."""
    rows = [torch.zeros(channels // 2)]
    for row in range(grid):
        for column in range(grid):
            first, second = (column, row) if columns_first else (row, column)
            angle = []
            for place in (first, second):
                for pair in range(channels // 4):
                    angle.append((place + offset) * scale * 10000 ** (-pair / (channels // 4)))
            rows.append(torch.tensor(angle))
    return torch.stack(rows)


def attend(query, key, value, heads):
    out = []
    for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in (query, key, value)), strict=True):
        out.append(((q @ k.T) / math.sqrt(q.shape[-1])).softmax(-1) @ v)
    return torch.cat(out, dim=-1)


def rotated(x, angles, heads):
    return torch.cat([turn(head, angles) for head in x.chunk(heads, dim=-1)], dim=-1)


def patches(state, pixels, key):
    weight = state[f"{key}.weight"]
    side = weight.shape[-1]
    bias = state.get(f"{key}.bias")
    rows = []
    for top in range(0, pixels.shape[1], side):
        for left in range(0, pixels.shape[2], side):
            rows.append(weight.flatten(1) @ pixels[:, top : top + side, left : left + side].flatten())
    tokens = torch.stack(rows)
    return tokens if bias is None else tokens + bias


def eva02(state, pixels, heads):
    """Image embedding (D,) and region features (HW, D) of one photo (3, S, S), timm's keys."""
    eps = 1e-6
    tokens = patches(state, pixels, "patch_embed.proj")
    grid = math.isqrt(len(tokens))
    x = torch.cat([state["cls_token"][0], tokens]) + state["pos_embed"][0]
    angles = angles_of(grid, x.shape[1] // heads, scale=16 / grid, offset=0, columns_first=False)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for index in range(depth):
        block = f"blocks.{index}"
        y = norm(state, f"{block}.norm1", x, eps)
        query, key, value = (linear(state, f"{block}.attn.{part}_proj", y) for part in "qkv")
        y = attend(rotated(query, angles, heads), rotated(key, angles, heads), value, heads)
        x = x + linear(state, f"{block}.attn.proj", norm(state, f"{block}.attn.norm", y, eps))
        y = norm(state, f"{block}.norm2", x, eps)
        gate = linear(state, f"{block}.mlp.fc1_g", y)
        y = gate * torch.sigmoid(gate) * linear(state, f"{block}.mlp.fc1_x", y)
        x = x + linear(state, f"{block}.mlp.fc2", norm(state, f"{block}.mlp.norm", y, eps))
    out = linear(state, "head", norm(state, "norm", x, eps))
    return out[0], out[1:]


def perception(state, pixels, heads):
    """Image embedding (D,) and region features (HW, D), of length 1, of one photo (3, S, S), timm's keys."""
    eps = 1e-5
    tokens = patches(state, pixels, "patch_embed.proj")
    grid = math.isqrt(len(tokens))
    x = norm(state, "norm_pre", torch.cat([state["cls_token"][0], tokens]) + state["pos_embed"][0], eps)
    angles = angles_of(grid, x.shape[1] // heads, scale=1, offset=1, columns_first=True)
    depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
    for index in range(depth):
        block = f"blocks.{index}"
        query, key, value = linear(state, f"{block}.attn.qkv", norm(state, f"{block}.norm1", x, eps)).chunk(3, dim=-1)
        y = attend(rotated(query, angles, heads), rotated(key, angles, heads), value, heads)
        x = x + linear(state, f"{block}.attn.proj", y)
        y = F.gelu(linear(state, f"{block}.mlp.fc1", norm(state, f"{block}.norm2", x, eps)))
        x = x + linear(state, f"{block}.mlp.fc2", y)
    x = norm(state, "norm", x, eps)
    key, value = linear(state, "attn_pool.kv", x).chunk(2, dim=-1)
    query = linear(state, "attn_pool.q", state["attn_pool.latent"][0])
    pooled = linear(state, "attn_pool.proj", attend(query, key, value, 8))
    hidden = F.gelu(linear(state, "attn_pool.mlp.fc1", norm(state, "attn_pool.norm", pooled, eps)))
    pooled = pooled + linear(state, "attn_pool.mlp.fc2", hidden)
    regions = linear(state, "attn_pool.proj", value[1:]) @ state["head.weight"].T
    return linear(state, "head", pooled)[0], regions / regions.norm(dim=-1, keepdim=True)
