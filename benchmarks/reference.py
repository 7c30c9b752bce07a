"""The released IntCLIP computation, written plainly: the reference for all speed comparisons.

It follows the released code step by step, without optimisation: eager float32; both branches split after layer2 and run
in full; the attention pool's attention is computed and discarded; every batch encodes 2K prompts of 77 tokens, with
unused gradients for the text encoder's weights; the asymmetric loss is summed over the batch and weighted by 0.03; SGD.
Its quirks are kept: patch 0 is repeated at the front, un-aggregated (50 regions from 49 patches), and the scales 20 and
5 are constants. Weights are in OpenAI's layout.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of a CLIP with a ModifiedResNet; the defaults are RN101."""

    layers: tuple[int, int, int, int] = (3, 4, 23, 3)
    width: int = 64
    embed_dim: int = 512
    image_size: int = 224
    text_width: int = 512
    text_heads: int = 8
    text_layers: int = 12
    context_length: int = 77
    vocabulary: int = 49408

    @property
    def grid(self) -> int:
        """Return the side of the last feature map."""
        return self.image_size // 32


class Bottleneck(nn.Module):
    """CLIP's bottleneck: 1×1, 3×3, average pool if the map shrinks, 1×1."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != planes * 4:
            shortcut = [nn.AvgPool2d(stride), nn.Conv2d(inputs, planes * 4, 1, bias=False), nn.BatchNorm2d(planes * 4)]
            self.downsample = nn.Sequential(OrderedDict(zip(("-1", "0", "1"), shortcut, strict=True)))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to a map."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        out += identity
        mapped: Tensor = self.relu(out)
        return mapped


def stage(inputs: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
    """Build one stage of bottlenecks."""
    rest = [Bottleneck(planes * 4, planes, 1) for _ in range(1, blocks)]
    return nn.Sequential(Bottleneck(inputs, planes, stride), *rest)


class AttentionPool(nn.Module):
    """CLIP's attention pool: attention, discarded, without gradient; then value and output projections everywhere."""

    def __init__(self, grid: int, width: int, output: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, output)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return token features (B, D, 1 + HW), mean token first, and the discarded attention of a map (B, C, H, W)."""
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)
        x = x + self.positional_embedding[:, None, :]
        with torch.no_grad():
            _, attention = F.multi_head_attention_forward(
                query=x, key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=x.shape[-1] // 64,
                q_proj_weight=self.q_proj.weight, k_proj_weight=self.k_proj.weight, v_proj_weight=self.v_proj.weight,
                in_proj_weight=None, in_proj_bias=torch.cat([self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]),
                bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=self.c_proj.weight,
                out_proj_bias=self.c_proj.bias, use_separate_proj_weight=True, training=False, need_weights=True,
            )  # fmt: skip
        assert attention is not None
        return self.c_proj(self.v_proj(x)).permute(1, 2, 0), attention[:, :1]


class Aggregation(nn.Module):
    """Position attention: queries and keys from the semantic map, values from the sight map; residual: their mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_conv = nn.Conv2d(dim, dim // 8, 1)
        self.key_conv = nn.Conv2d(dim, dim // 8, 1)
        self.value_conv = nn.Conv2d(dim, dim, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, semantic: Tensor, sight: Tensor) -> Tensor:
        """Return the fused map of two maps (B, D, H, W)."""
        query = self.query_conv(semantic).flatten(2).permute(0, 2, 1)
        key = self.key_conv(semantic).flatten(2)
        attention = torch.softmax(torch.bmm(query, key), dim=-1)
        out = torch.bmm(self.value_conv(sight).flatten(2), attention.permute(0, 2, 1)).view_as(sight)
        return self.gamma * out + (sight + semantic) / 2


class ImageTower(nn.Module):
    """ModifiedResNet with two copies of the third and fourth stages and the attention pool."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width, grid = shape.width, shape.grid
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.relu = nn.ReLU(inplace=True)
        one, two, three, four = shape.layers
        self.layer1 = stage(width, width, one, 1)
        self.layer2 = stage(width * 4, width * 2, two, 2)
        self.layer3 = stage(width * 8, width * 4, three, 2)
        self.layer4 = stage(width * 16, width * 8, four, 2)
        self.semantic_layer3 = stage(width * 8, width * 4, three, 2)
        self.semantic_layer4 = stage(width * 16, width * 8, four, 2)
        self.attnpool = AttentionPool(grid, width * 32, shape.embed_dim)
        self.semantic_attnpool = AttentionPool(grid, width * 32, shape.embed_dim)
        self.aggregation = Aggregation(shape.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return region features (B, D, 1 + HW) of pixels (B, 3, S, S)."""
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = self.relu(norm(conv(x)))
        x = self.layer2(self.layer1(self.avgpool(x)))
        semantic = x.clone()
        x = self.layer4(self.layer3(x))
        semantic = self.semantic_layer4(self.semantic_layer3(semantic))
        height, width = x.shape[-2:]
        sight_tokens, _ = self.attnpool(x)
        semantic_tokens, _ = self.semantic_attnpool(semantic)
        sight_tokens, semantic_tokens = sight_tokens[:, :, 1:], semantic_tokens[:, :, 1:]
        first = semantic_tokens[:, :, :1]
        fused = self.aggregation(
            semantic_tokens.unflatten(2, (height, width)), sight_tokens.unflatten(2, (height, width))
        )
        return torch.cat([first, fused.flatten(2)], dim=2)


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape."""
        return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Pre-norm transformer block with a causal mask."""

    def __init__(self, width: int, heads: int, context_length: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        layers = [nn.Linear(width, width * 4), QuickGELU(), nn.Linear(width * 4, width)]
        self.mlp = nn.Sequential(OrderedDict(zip(("c_fc", "gelu", "c_proj"), layers, strict=True)))
        self.ln_2 = nn.LayerNorm(width)
        self.mask = torch.full((context_length, context_length), float("-inf")).triu_(1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (L, T, width) to the same shape."""
        self.mask = self.mask.to(x)
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=self.mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Text(nn.Module):
    """Sequence of text blocks, with CLIP's key `transformer.resblocks`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        blocks = [TextBlock(shape.text_width, shape.text_heads, shape.context_length) for _ in range(shape.text_layers)]
        self.resblocks = nn.Sequential(*blocks)


class ReferenceIntCLIP(nn.Module):
    """Logits (B, 2, K), negatives first, of pixels, with two learned prompts around each of K token rows (K, 77).

    Args:
        shape: Sizes of the towers.
        tokens: (K, context_length), rows of "X … X sentence."; the X are placeholders for contexts.
        contexts: Number of context vectors per prompt.
    """

    tokens: Tensor

    def __init__(self, shape: Shape, tokens: Tensor, contexts: int = 16) -> None:
        super().__init__()
        self.visual = ImageTower(shape)
        self.token_embedding = nn.Embedding(shape.vocabulary, shape.text_width)
        self.positional_embedding = nn.Parameter(torch.randn(shape.context_length, shape.text_width) * 0.01)
        self.transformer = Text(shape)
        self.ln_final = nn.LayerNorm(shape.text_width)
        self.text_projection = nn.Parameter(torch.randn(shape.text_width, shape.embed_dim) * shape.text_width**-0.5)
        self.register_buffer("tokens", tokens)
        self.context_negative = nn.Parameter(torch.randn(len(tokens), contexts, shape.text_width) * 0.02)
        self.context_positive = nn.Parameter(torch.randn(len(tokens), contexts, shape.text_width) * 0.02)
        self.eval()
        self._choose_gradients()

    def _choose_gradients(self) -> None:
        # As released: the copied stages and the aggregation are trained; the text encoder has unused gradients.
        for name, parameter in self.visual.named_parameters():
            parameter.requires_grad_(name.startswith(("semantic_layer", "aggregation")))

    def load_openai(self, state: dict[str, Tensor]) -> None:
        """Load a state dict in OpenAI's layout; both branches have the same initial weights."""
        own = {key: value for key, value in state.items() if key != "logit_scale"}
        for key in list(own):
            if key.startswith(("visual.layer3", "visual.layer4", "visual.attnpool")):
                own[key.replace("visual.", "visual.semantic_", 1)] = own[key]
        missing, unexpected = self.load_state_dict(own, strict=False)
        assert not unexpected, unexpected
        assert all(key.startswith(("visual.aggregation", "context_", "tokens")) for key in missing), missing

    def encode_prompts(self) -> Tensor:
        """Return text features (2K, D), negatives first, unnormalised."""
        count = self.context_positive.shape[1]
        with torch.no_grad():
            embedded = self.token_embedding(self.tokens)
        sets = [
            torch.cat([embedded[:, :1], context, embedded[:, 1 + count :]], dim=1)
            for context in (self.context_negative, self.context_positive)
        ]
        x = torch.cat(sets) + self.positional_embedding
        x = self.transformer.resblocks(x.permute(1, 0, 2)).permute(1, 0, 2)
        x = self.ln_final(x)
        end = self.tokens.argmax(dim=-1).repeat(2)
        features: Tensor = x[torch.arange(len(x)), end] @ self.text_projection
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 2, K) of pixels (B, 3, S, S)."""
        image = self.visual(pixels)
        text = self.encode_prompts()
        text = text / text.norm(dim=-1, keepdim=True)
        image = image / image.norm(dim=1, keepdim=True)
        similarity = 20 * F.conv1d(image, text[:, :, None])
        half = torch.softmax(similarity[:, similarity.shape[1] // 2 :], dim=-1)
        logits = 5 * (similarity * torch.cat([half, half], dim=1)).sum(-1)
        return logits.reshape(len(pixels), 2, -1)


def asymmetric_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative summed asymmetric log-likelihood, γ+ 1, γ− 2, margin 0.05, weighted by 0.03."""
    positive = torch.softmax(logits, dim=1)[:, 1]
    negative = (1 - positive + 0.05).clamp(max=1)
    loss = targets * torch.log(positive.clamp(min=1e-8)) + (1 - targets) * torch.log(negative.clamp(min=1e-8))
    with torch.no_grad():
        certainty = positive * targets + negative * (1 - targets)
        weight = torch.pow(1 - certainty, targets + 2 * (1 - targets))
    return -0.03 * (loss * weight).sum()


def make_optimizer(model: ReferenceIntCLIP, rate: float = 0.0004) -> torch.optim.SGD:
    """Make SGD for the prompts, and for the copied stages and the aggregation at a tenth of the rate."""
    deep = [parameter for parameter in model.visual.parameters() if parameter.requires_grad]
    prompts = [model.context_negative, model.context_positive]
    groups: list[dict[str, Any]] = [{"params": prompts}, {"params": deep, "lr": 0.1 * rate}]
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, weight_decay=5e-4)


def train_step(model: ReferenceIntCLIP, optimizer: torch.optim.Optimizer, pixels: Tensor, targets: Tensor) -> float:
    """Take one step as released; the loss is read back every step."""
    loss = asymmetric_loss(model(pixels), targets)
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()
