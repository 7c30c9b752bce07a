"""A tiny backbone with the real contract: 8 dimensions, 3 × 3 regions, word tokens."""

import zlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones.base import Backbone, ImageHead, TextTower
from intclip.backbones.preprocess import Preprocess
from intclip.errors import TextLengthError
from intclip.labels.taxonomy import Taxonomy

EMBED_DIM = 8
IMAGE_SIZE = 24
WORDS = 61
START, END = 1, 2


class TinyText(TextTower):
    """Words hashed to 61 ids; a prefix sum of embeddings, so that order and length matter, read at the end token."""

    width = 6
    embed_dim = EMBED_DIM
    context_length = 24

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS + 3, self.width)
        self.position = nn.Parameter(torch.randn(self.context_length, self.width) * 0.3)
        self.projection = nn.Linear(self.width, EMBED_DIM)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        rows = [[START, *(3 + zlib.crc32(w.lower().encode()) % WORDS for w in text.split()), END] for text in texts]
        longest = max(map(len, rows))
        if longest > self.context_length:
            raise TextLengthError(f"a text has {longest} tokens, more than {self.context_length}")
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])

    def lengths(self, tokens: Tensor) -> Tensor:
        return (tokens != 0).sum(dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        hidden = torch.tanh(embeddings + self.position[: embeddings.shape[1]]).cumsum(dim=1)
        at_end = hidden[torch.arange(hidden.shape[0]), lengths - 1]
        return self.projection(torch.tanh(at_end))


class TinyHead(ImageHead):
    """A linear projection at every position; pooled is its mean."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, EMBED_DIM, 1)

    def regions(self, deep: Tensor) -> Tensor:
        return self.projection(deep)

    def pooled(self, deep: Tensor) -> Tensor:
        return self.projection(deep).mean(dim=(2, 3))


class TinyBackbone(Backbone):
    """Two convolutions in the trunk, one with batch norm in the deep layers."""

    name = "tiny"
    embed_dim = EMBED_DIM
    grid = (3, 3)
    preprocess = Preprocess(size=IMAGE_SIZE, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.ReLU(), nn.Conv2d(5, 6, 2, 2), nn.ReLU())
            norm = nn.BatchNorm2d(7)
            norm.running_mean.copy_(torch.randn(7) * 0.1)
            norm.running_var.copy_(torch.rand(7) + 0.5)
            self.deep = nn.Sequential(nn.Conv2d(6, 7, 2, 2), norm, nn.ReLU())
            self.head = TinyHead(7)
            self.text = TinyText()
        self.freeze()

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        first = self.trunk[:2](pixels)
        second = self.trunk[2:](first)
        third = self.deep(second)
        return [first, second, third, F.avg_pool2d(third, 3)]


def tiny_taxonomy(classes: int = 5) -> Taxonomy:
    """Classes under two groups, with sentences of different lengths."""
    words = ["joy", "in", "nature", "with", "friends", "and", "old", "books", "near", "water"]
    names = tuple(f"class {i}" for i in range(classes))
    groups = tuple(f"group {i % 2}" for i in range(classes))
    sentences = tuple(f"{name} {' '.join(words[: 2 + i % 5])}" for i, name in enumerate(names))
    forms = {"fine": names, "consolidated": tuple(f"{g} {n}" for g, n in zip(groups, names, strict=True))}
    forms |= dict.fromkeys(("3-5", "6-9", "11-15", "16-20"), sentences)
    return Taxonomy(
        name="tiny",
        names=names,
        levels={"class": names, "group": tuple(sorted(set(groups)))},
        parents={name: (group,) for name, group in zip(names, groups, strict=True)},
        sentence_forms=forms,
        definitions={},
        aliases={},
        source="made for tests",
    )
