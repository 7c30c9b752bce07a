"""The contract that every backbone keeps: an image tower in three parts and a text tower, in one joint space.

::

    pixels ─ trunk ─ deep ─ head ─┬─ regions (B, D, H, W)
                                  └─ pooled  (B, D)
    tokens ─ text tower ─ (T, D)

IntCLIP copies `deep` (the trainable semantic branch) and shares `trunk` and `head`; a cache stores what `features`
returns. Nothing here trains: all parameters of a backbone are frozen, a method trains copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from intclip.backbones.architecture import Activation, Split
from intclip.backbones.content import digest, tensor_hashes
from intclip.backbones.preprocess import Preprocess
from intclip.errors import IntclipError

FeatureName = Literal["pixels", "trunk", "deep", "regions", "pooled", "stages", "stage1", "stage2", "stage3", "stage4"]
"""What a method may ask of a backbone, per photo:

pixels: the preprocessed photo (3, S, S), for methods that train the trunk; it cannot be cached.
trunk: the trunk's output, any shape without the batch.
deep: what the frozen deep layers make of it: the last feature map, or the last tokens of a ViT.
regions: the frozen sight map in the joint space (D, H, W).
pooled: the backbone's own image embedding (D,), unnormalised.
stages: the maps of the last four stages, fine to coarse, as `stage1` … `stage4`, each (C_i, H_i, W_i).
stage1 … stage4: one of these alone.
"""
Features = dict[str, Tensor]
"""Feature name to a batch of them; `stages` comes as four entries `stage1` … `stage4`."""

LongTexts = Literal["refuse", "average"]
Progress = Callable[[int, int], None]
TEXT_BATCH = 32


class TextTower(nn.Module, ABC):
    """A text encoder that takes tokens, or embeddings in place of tokens (learned prompts).

    Attributes:
        width: Size of a token embedding, the size of a prompt's context vectors.
        embed_dim: Size D of the joint space.
        context_length: The largest number of tokens, start and end included.
        start_tokens: Number of tokens before a text's own, 0 or 1.
        end_tokens: Number of tokens behind a text's own, 0 or 1.
        engine: Computes `forward` in `embed_texts` on a CPU; see `intclip.inference.text_engine`.
    """

    width: int
    embed_dim: int
    context_length: int
    start_tokens: int = 1
    end_tokens: int = 1
    engine: Callable[[Tensor], Tensor] | None = None

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Tokens (T, L), int64, L the longest of these texts, padded behind their end.

        Raises:
            IntclipError: A text has more than `context_length` tokens.
        """

    @abstractmethod
    def lengths(self, tokens: Tensor) -> Tensor:
        """Number of tokens of each row (T,), start and end included, padding not."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (T, L, width), without positions."""

    @abstractmethod
    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Text features (T, D), unnormalised, of token embeddings (T, L, width) whose rows have these lengths."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Text features (T, D), unnormalised, of tokens (T, L)."""
        return self.encode_embeddings(self.embed(tokens), self.lengths(tokens))

    @torch.no_grad()
    def embed_texts(
        self, texts: Sequence[str], *, long: LongTexts = "refuse", on_progress: Progress | None = None
    ) -> Tensor:
        """Unit text embeddings (T, D), float32, on the tower's device.

        Each different text is encoded once, in batches of texts of like length, so that little is padded.

        Args:
            texts: T texts.
            long: What happens to a text of more than `context_length` tokens: "refuse" it, or "average" the features
                of its pieces (halves at a blank, halved again until they fit).
            on_progress: Called with (done, total) texts.

        Raises:
            IntclipError: A text is too long, and `long` is "refuse".
        """
        pieces = [[text] if long == "refuse" else self._pieces(text) for text in texts]
        places = {piece: place for place, piece in enumerate(dict.fromkeys(p for group in pieces for p in group))}
        unique = list(places)
        device = next(self.parameters()).device
        encode = self.engine if self.engine is not None and device.type == "cpu" else self
        encoded = torch.empty(len(unique), self.embed_dim, device=device)
        order = sorted(range(len(unique)), key=lambda place: len(unique[place]))
        for start in range(0, len(order), TEXT_BATCH):
            rows = order[start : start + TEXT_BATCH]
            encoded[rows] = encode(self.tokenize([unique[row] for row in rows]).to(device)).float()
            if on_progress is not None:
                done = min(start + TEXT_BATCH, len(order))
                on_progress(round(done * len(texts) / len(order)), len(texts))
        means = [encoded[[places[piece] for piece in group]].mean(dim=0) for group in pieces]
        return F.normalize(torch.stack(means), dim=1) if means else encoded

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Share of each text's tokens that are the tokenizer's unknown token, in [0, 1].

        0 for every text where the tokenizer has none, such as CLIP's byte-pair encoding: it splits what it does not
        know into bytes, which says nothing about whether the tower was trained on the language.
        """
        return [0.0] * len(texts)

    def _pieces(self, text: str) -> list[str]:
        """The text, halved at a blank (or anywhere in one word) until each piece fits the context."""
        try:
            self.tokenize([text])
        except IntclipError:
            words = text.split()
            half = len(words) // 2
            if half == 0:
                return self._pieces(text[: len(text) // 2]) + self._pieces(text[len(text) // 2 :])
            return self._pieces(" ".join(words[:half])) + self._pieces(" ".join(words[half:]))
        return [text]


class ImageHead(nn.Module, ABC):
    """From the last deep feature map to the joint space."""

    @abstractmethod
    def regions(self, deep: Tensor) -> Tensor:
        """Region features (B, D, H, W) in the joint space."""

    @abstractmethod
    def pooled(self, deep: Tensor) -> Tensor:
        """The backbone's own image embedding (B, D), unnormalised."""


class Backbone(nn.Module, ABC):
    """An image tower (trunk, deep, head) and a text tower over one joint space, frozen.

    Attributes:
        name: Registry name, such as "RN101" or "lite".
        embed_dim: Size D of the joint space.
        grid: Height and width (H, W) of the region map at the preprocess size.
        preprocess: Maps a PIL image to float32 pixels (3, S, S).
        trunk: The shared shallow layers: pixels to trunk features.
        deep: The layers that IntCLIP copies: trunk features to the last feature map.
        head: Projection of the last feature map to the joint space.
        text: The text tower.
        image_moments: Mean μ (D,) and covariance Σ (D, D) of the normalised embeddings of many ordinary photos, on the
            CPU, where they are known: a normalised sentence t has over such photos cosines of mean t·μ and variance
            tᵀΣt. None where they are not.
        split: Where trunk and deep layers part.
        given_activation: What `load_backbone` was told, where nothing beside the weights says it.
        given_checkpoint: The file, folder or hub repository that `load_backbone` was given.
    """

    image_moments: tuple[Tensor, Tensor] | None = None
    split: Split = "paper"
    given_checkpoint: str | None = None
    given_activation: Activation | None = None
    name: str
    embed_dim: int
    grid: tuple[int, int]
    preprocess: Preprocess
    trunk: nn.Module
    deep: nn.Module
    head: ImageHead
    text: TextTower

    def take(self, preprocess: Preprocess) -> None:
        """Look at photos in another way.

        Raises:
            IntclipError: The tower does not take photos of that size.
        """
        if preprocess.size != self.image_size:
            raise IntclipError(f"{self.name} takes photos of {self.image_size} pixels a side, not {preprocess.size}")
        self.preprocess = preprocess

    @property
    def image_size(self) -> int:
        """Side S of the square input, in pixels."""
        return self.preprocess.size

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Image embeddings (B, D), unnormalised, of pixels (B, 3, S, S)."""
        return self.head.pooled(self.deep(self.trunk(pixels)))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text embeddings (T, D), unnormalised, of tokens (T, L) from `tokenize`."""
        features: Tensor = self.text(tokens)
        return features

    def embed_texts(
        self, texts: Sequence[str], *, long: LongTexts = "refuse", on_progress: Progress | None = None
    ) -> Tensor:
        """Unit text embeddings (T, D); see `TextTower.embed_texts`."""
        return self.text.embed_texts(texts, long=long, on_progress=on_progress)

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Share of each text's tokens that the text tower does not know; see `TextTower.unknown_share`."""
        return self.text.unknown_share(texts)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Region features (B, D, H, W) in the joint space of pixels (B, 3, S, S)."""
        return self.head.regions(self.deep(self.trunk(pixels)))

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens (T, L), int64: what this backbone's `encode_text` takes."""
        return self.text.tokenize([texts] if isinstance(texts, str) else list(texts))

    def logit_sigmoid(self) -> tuple[float, float] | None:
        """Scale and bias of p = sigmoid(scale · cos + bias), for a backbone that was trained with it; else None."""
        return None

    def design(self) -> dict[str, object]:
        """What decides the numbers besides tensors and preprocessing, as plain data: activation, heads and the like."""
        return {}

    def identity(self) -> str:
        """SHA-256 of what decides both towers' numbers, preprocessing aside: design and content of all tensors.

        Two backbones of the same identity give the same features of the same pixels and tokens, wherever their weights
        were read from.
        """
        return digest([self.design(), tensor_hashes(self)])

    @abstractmethod
    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Feature maps of the last four stages, fine to coarse, each (B, C_i, H_i, W_i)."""

    def run_stages(self, pixels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Trunk features, last feature map and the four stage maps; override to take all three from one pass."""
        trunk = self.trunk(pixels)
        return trunk, self.deep(trunk), self.stage_maps(pixels)

    def deep_map(self, deep: Tensor) -> Tensor:
        """The last feature map (B, C, H, W) before the head, of what `deep` or a copy of it gives."""
        return deep

    def features(self, pixels: Tensor, names: Iterable[FeatureName]) -> Features:
        """The named features of a batch, each part of the tower run once and without gradient.

        Args:
            pixels: (B, 3, S, S).
            names: Which features; see `FeatureName`.
        """
        wanted = set(names)
        if unknown := wanted - set(get_args(FeatureName)):
            raise ValueError(f"unknown feature {sorted(unknown)}; known: {', '.join(get_args(FeatureName))}")
        out: Features = {}
        if "pixels" in wanted:
            out["pixels"] = pixels
        with torch.no_grad():
            trunk = deep = None
            numbers = [i for i in range(1, 5) if wanted & {"stages", f"stage{i}"}]
            others = bool(wanted & {"trunk", "deep", "regions", "pooled"})
            if numbers:
                if others:
                    trunk, deep, stages = self.run_stages(pixels)
                else:
                    stages = self.stage_maps(pixels)
                out.update({f"stage{i}": stages[i - 1] for i in numbers})
            elif others:
                trunk = self.trunk(pixels)
            if trunk is not None and "trunk" in wanted:
                out["trunk"] = trunk
            if trunk is not None and wanted & {"deep", "regions", "pooled"}:
                deep = self.deep(trunk) if deep is None else deep
                if "deep" in wanted:
                    out["deep"] = deep
                if "regions" in wanted:
                    out["regions"] = self.head.regions(deep)
                if "pooled" in wanted:
                    out["pooled"] = self.head.pooled(deep)
        return out

    def tower(self, name: str) -> "Backbone":
        """A view of one of several image towers, over the features of all; see `lite.TowerView`.

        Raises:
            IntclipError: It has no such tower beside another.
        """
        raise IntclipError(f"{self.name} has one image tower; leave out tower {name!r}, or take a backbone of several")

    def freeze(self) -> "Backbone":
        """Switch to inference behaviour and take no gradients; called once by every builder."""
        self.eval()
        return self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in inference behaviour: a backbone's statistics never change."""
        return super().train(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocessed batch (B, 3, S, S) of PIL images."""
        return torch.stack([self.preprocess(image) for image in images])
