"""The adapters of FAME-ViL in the frozen deep layers of any backbone, for multi-label classification.

Han, Zhu, Yu, Zhang, Song, Xiang: FAME-ViL: Multi-Tasking Vision-Language Model for Heterogeneous Fashion Tasks, CVPR
2023. README.md in this folder has the equations and the differences.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.label_graph import label_embeddings
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map


class FameVilOptions(ClassifierOptions, frozen=True):
    """Options of the adapters.

    Attributes:
        bottleneck: Inner width of an adapter; 64 in the released code.
        cross_attention: Add adapters through which the photo's tokens attend to the labels' sentences.
        sentence_form: Form of these sentences.
        loss: The classification loss.
    """

    bottleneck: int = Field(default=64, gt=0)
    cross_attention: bool = True
    sentence_form: str = "11-15"
    loss: LossOptions = LossOptions(reduction="batch")


class BottleneckAdapter(nn.Module):
    """s · W_up relu(W_down LN(x)), initially s = 1 and W_up = 0 (TSA).

    Args:
        dim: Channels of the tokens.
        bottleneck: Inner width.
    """

    def __init__(self, dim: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        self.scale = nn.Parameter(torch.ones(()))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the residual for tokens (B, N, C)."""
        added: Tensor = self.scale * self.up(torch.relu(self.down(self.norm(tokens))))
        return added


class CrossAttentionAdapter(nn.Module):
    """tanh(g) · W_o softmax(q kᵀ / √d) v, q from tokens, k and v from the labels' sentences, initially g = 0 (XAA).

    Args:
        dim: Channels of the tokens.
        words: Width of the sentences' embeddings.
        bottleneck: Width d of queries, keys and values.
    """

    def __init__(self, dim: int, words: int, bottleneck: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, bottleneck)
        self.key = nn.Linear(words, bottleneck)
        self.value = nn.Linear(words, bottleneck)
        self.out = nn.Linear(bottleneck, dim)
        self.gate = nn.Parameter(torch.zeros(()))
        self.scale = bottleneck**-0.5

    def forward(self, tokens: Tensor, sentences: Tensor) -> Tensor:
        """Return the residual for tokens (B, N, C) from sentences (K, words)."""
        attention = (self.query(self.norm(tokens)) @ self.key(sentences).T * self.scale).softmax(dim=2)
        added: Tensor = torch.tanh(self.gate) * self.out(attention @ self.value(sentences))
        return added


class FameVil(Classifier):
    """Frozen deep layers with adapters before every block, and a linear head.

    They are before the blocks, not after, so that the properties of the last block's output still hold.
    """

    Options = FameVilOptions
    options: FameVilOptions
    needs = ("trunk",)
    label_text: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: FameVilOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        # Not stored: derived from the sentences, which are in the bundle.
        text = label_embeddings(backbone.text, taxonomy, options.sentence_form)
        self.register_buffer("label_text", text, persistent=False)
        widths = _widths(backbone)
        self.adapters = nn.ModuleList(BottleneckAdapter(width, options.bottleneck) for width in widths)
        crossed = widths if options.cross_attention else []
        self.cross = nn.ModuleList(CrossAttentionAdapter(width, text.shape[1], options.bottleneck) for width in crossed)
        self.head = nn.Linear(backbone.embed_dim, len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is the head at every region."""
        x = features["trunk"]
        for number, block in enumerate(_blocks(self.backbone)):
            tokens = _as_tokens(x)
            added = self.adapters[number](tokens)
            if self.options.cross_attention:
                added = added + self.cross[number](tokens, self.label_text)
            x = block(x + _as_input(added, x))
        output = Output(self.head(self.backbone.head.pooled(x)))
        if maps:
            output.maps["fused"] = region_map(self.head, self.backbone.head.regions(x))
        return output


def _blocks(backbone: Backbone) -> list[nn.Module]:
    """Return the deep layers one by one, or as one block if they are not sequential."""
    return list(backbone.deep) if isinstance(backbone.deep, nn.Sequential) else [backbone.deep]


@torch.no_grad()
def _widths(backbone: Backbone) -> list[int]:
    """Return the channels before each block, by running one black photo."""
    size, parameter = backbone.image_size, next(backbone.parameters())
    x = backbone.trunk(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    widths = []
    for block in _blocks(backbone):
        widths.append(_as_tokens(x).shape[2])
        x = block(x)
    return widths


def _as_tokens(x: Tensor) -> Tensor:
    """Convert a map (B, C, H, W) to tokens (B, N, C); tokens are unchanged."""
    return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x


def _as_input(tokens: Tensor, x: Tensor) -> Tensor:
    """Reshape tokens (B, N, C) to the shape of their source."""
    return tokens.transpose(1, 2).reshape(x.shape) if x.dim() == 4 else tokens
