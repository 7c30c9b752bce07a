"""The contract of all backbones: an image tower in three parts and a text tower, in one joint space.

::

    pixels ─ trunk ─ deep ─ head ─┬─ regions (B, D, H, W)
                                  └─ pooled  (B, D)
    tokens ─ text tower ─ (T, D)

IntCLIP copies `deep` (the trainable semantic branch) and shares `trunk` and `head`; a cache stores what `features`
returns. All parameters of a backbone are frozen; methods train copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from intclip.backbones.architecture import Activation, Regions, Split
from intclip.backbones.content import tensor_hashes
from intclip.backbones.preprocess import Preprocess
from intclip.errors import IntclipError, TextLengthError
from intclip.files import digest

FeatureName = Literal["pixels", "trunk", "deep", "regions", "pooled", "stages", "stage1", "stage2", "stage3", "stage4"]
"""Features of a backbone, per photo:

pixels: the preprocessed photo (3, S, S), for methods that train the trunk; it cannot be cached.
trunk: the trunk's output, any shape without the batch.
deep: the output of the frozen deep layers: the last feature map, or the last tokens of a ViT.
regions: the frozen sight map in the joint space (D, H, W).
pooled: the backbone's own image embedding (D,), unnormalised.
stages: the maps of the last four stages, fine to coarse, as `stage1` … `stage4`, each (C_i, H_i, W_i).
stage1 … stage4: one of these.
"""
Features = dict[str, Tensor]
"""Feature name to a batch; `stages` becomes four entries `stage1` … `stage4`."""

LongTexts = Literal["refuse", "average"]
Progress = Callable[[int, int], None]
TEXT_BATCH = 32


class Store(Protocol):
    """Stores text features between runs."""

    def read(self, texts: Sequence[str]) -> Mapping[int, npt.NDArray[np.float32]]:
        """Return the features (D,) of the stored texts, by index."""
        ...

    def write(self, texts: Sequence[str], features: npt.NDArray[np.float32]) -> None:
        """Store the features (T, D) of texts."""
        ...


class TextTower(nn.Module, ABC):
    """A text encoder of tokens, or of embeddings in place of tokens (learned prompts).

    Attributes:
        width: Size of a token embedding, the size of a prompt's context vectors.
        embed_dim: Size D of the joint space.
        context_length: The largest number of tokens, start and end included.
        start_tokens: Number of tokens before a text's own, 0 or 1.
        end_tokens: Number of tokens after a text's own, 0 or 1.
        engine: Computes `forward` in `embed_texts` on a CPU; see `intclip.inference.text_engine`.
        store: Stored features, used first by `embed_texts`; see `intclip.data.text_store`.
    """

    width: int
    embed_dim: int
    context_length: int
    start_tokens: int = 1
    end_tokens: int = 1
    engine: Callable[[Tensor], Tensor] | None = None
    store: Store | None = None

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return tokens (T, L), int64, L the longest of these texts, padded at the end.

        Raises:
            TextLengthError: A text has more than `context_length` tokens.
        """

    @abstractmethod
    def lengths(self, tokens: Tensor) -> Tensor:
        """Return the number of tokens of each row (T,), including start and end, without padding."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Return token embeddings (T, L, width), without positions."""

    @abstractmethod
    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """Compute text features (T, D), unnormalised, of token embeddings (T, L, width) with these lengths."""

    def check_length(self, length: int) -> None:
        """Check that a prompt of this many tokens fits the context.

        Raises:
            IntclipError: It does not.
        """
        if length > self.context_length:
            raise IntclipError(
                f"a prompt of {length} tokens is longer than this text tower's {self.context_length};"
                " take a shorter sentence or fewer context vectors"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Compute text features (T, D), unnormalised, of tokens (T, L)."""
        return self.encode_embeddings(self.embed(tokens), self.lengths(tokens))

    @torch.no_grad()
    def embed_texts(
        self, texts: Sequence[str], *, long: LongTexts = "refuse", on_progress: Progress | None = None
    ) -> Tensor:
        """Compute unit text embeddings (T, D), float32, on the tower's device.

        Each distinct text is encoded once, in batches of similar numbers of tokens, to reduce padding.

        Args:
            texts: T texts.
            long: For texts of more than `context_length` tokens: "refuse" raises, "average" averages
                the features of pieces (halves at a space, halved again until they fit).
            on_progress: Called with (done, total) texts.

        Raises:
            TextLengthError: A text is too long, and `long` is "refuse".
        """
        pieces = [[text] if long == "refuse" else self._pieces(text) for text in texts]
        places = {piece: place for place, piece in enumerate(dict.fromkeys(p for group in pieces for p in group))}
        unique = list(places)
        device = next(self.parameters()).device
        encode = self.engine if self.engine is not None and device.type == "cpu" else self
        encoded = torch.empty(len(unique), self.embed_dim, device=device)
        kept = {} if self.store is None else self.store.read(unique)
        for place, features in kept.items():
            encoded[place] = torch.tensor(features)
        order = self._by_length(unique, [place for place in range(len(unique)) if place not in kept])
        for start in range(0, len(order), TEXT_BATCH):
            rows = order[start : start + TEXT_BATCH]
            some = [unique[row] for row in rows]
            encoded[rows] = encode(self.tokenize(some).to(device)).float()
            if self.store is not None:
                self.store.write(some, encoded[rows].cpu().numpy())
            if on_progress is not None:
                done = min(start + TEXT_BATCH, len(order))
                on_progress(round(done * len(texts) / len(order)), len(texts))
        means = [encoded[[places[piece] for piece in group]].mean(dim=0) for group in pieces]
        return F.normalize(torch.stack(means), dim=1) if means else encoded

    def _by_length(self, texts: Sequence[str], places: Sequence[int]) -> list[int]:
        """Sort places of texts by the number of tokens; letters say little about it for links and hashtags."""
        lengths: list[int] = []
        for start in range(0, len(places), TEXT_BATCH):
            some = [texts[place] for place in places[start : start + TEXT_BATCH]]
            lengths += self.lengths(self.tokenize(some)).tolist()
        return [place for _, place in sorted(zip(lengths, places, strict=True))]

    def vocabulary(self) -> str:
        """Return the content of the tokenizer's file; empty for CLIP's byte-pair encoding, which is the package's."""
        return ""

    def unknown_share(self, texts: Sequence[str]) -> list[float]:
        """Return the share of unknown tokens in each text, in [0, 1].

        It is 0 for tokenizers without an unknown token, such as CLIP's byte-pair encoding, which splits
        unknown words into bytes; this does not imply that the tower was trained on the language.
        """
        return [0.0] * len(texts)

    def _pieces(self, text: str) -> list[str]:
        """Halve a text at spaces (or within a single word) until each piece fits the context."""
        try:
            self.tokenize([text])
        except TextLengthError:
            words = text.split()
            half = len(words) // 2
            if half == 0:
                return self._pieces(text[: len(text) // 2]) + self._pieces(text[len(text) // 2 :])
            return self._pieces(" ".join(words[:half])) + self._pieces(" ".join(words[half:]))
        return [text]


class ImageHead(nn.Module, ABC):
    """Projects the last deep feature map to the joint space."""

    @abstractmethod
    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W) in the joint space."""

    @abstractmethod
    def pooled(self, deep: Tensor) -> Tensor:
        """Return the backbone's own image embedding (B, D), unnormalised."""


class Backbone(nn.Module, ABC):
    """A frozen image tower (trunk, deep, head) and text tower with a joint space.

    Attributes:
        name: Registry name, such as "RN101" or "lite".
        embed_dim: Size D of the joint space.
        grid: Height and width (H, W) of the region map at the preprocess size.
        preprocess: Maps a PIL image to float32 pixels (3, S, S).
        trunk: The shared shallow layers: pixels to trunk features.
        deep: The layers that IntCLIP copies: trunk features to the last feature map.
        head: Projection of the last feature map to the joint space.
        text: The text tower.
        image_moments: Mean μ (D,) and covariance Σ (D, D) of the normalised embeddings of many
            ordinary photos, on the CPU, if known: over such photos, the cosines of a normalised sentence t have mean
            t·μ and variance tᵀΣt.
        split: Split between trunk and deep layers.
        given_activation: Activation passed to `load_backbone`, if not in a configuration.
        given_checkpoint: File, folder or hub repository passed to `load_backbone`.
        regions: Region features of a ViT's patches; see `load_backbone`.
    """

    image_moments: tuple[Tensor, Tensor] | None = None
    split: Split = "paper"
    given_checkpoint: str | None = None
    given_activation: Activation | None = None
    regions: Regions = "tokens"
    name: str
    embed_dim: int
    grid: tuple[int, int]
    preprocess: Preprocess
    trunk: nn.Module
    deep: nn.Module
    head: ImageHead
    text: TextTower

    def take(self, preprocess: Preprocess) -> None:
        """Change the preprocessing.

        Raises:
            IntclipError: The tower does not support that size.
        """
        if preprocess.size != self.image_size:
            raise IntclipError(f"{self.name} needs photos of {self.image_size} pixels, not {preprocess.size}")
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
        """Return the share of unknown tokens in each text; see `TextTower.unknown_share`."""
        return self.text.unknown_share(texts)

    def feature_map(self, pixels: Tensor) -> Tensor:
        """Region features (B, D, H, W) in the joint space of pixels (B, 3, S, S)."""
        return self.head.regions(self.deep(self.trunk(pixels)))

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Tokens (T, L), int64: what this backbone's `encode_text` takes."""
        return self.text.tokenize([texts] if isinstance(texts, str) else list(texts))

    def logit_sigmoid(self) -> tuple[float, float] | None:
        """Scale and bias of p = sigmoid(scale · cos + bias), for backbones trained with it; else None."""
        return None

    def design(self) -> dict[str, object]:
        """Return everything besides tensors and preprocessing that affects the outputs, as plain data."""
        return {}

    def identity(self) -> str:
        """Hash architecture and tensors of both towers, without preprocessing.

        Backbones with the same identity compute the same features from the same pixels and tokens.
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
        """Return the last feature map (B, C, H, W) before the head from the output of `deep` or a copy of it."""
        return deep

    def features(self, pixels: Tensor, names: Iterable[FeatureName]) -> Features:
        """Compute the named features of a batch, running each part of the tower once, without gradient.

        Args:
            pixels: (B, 3, S, S).
            names: Features; see `FeatureName`.
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
        """Return a view of one of several image towers, on the features of all; see `lite.TowerView`.

        Raises:
            IntclipError: The backbone does not have several towers with this one.
        """
        raise IntclipError(f"{self.name} has one image tower; omit tower {name!r}, or use a backbone with several")

    def freeze(self) -> "Backbone":
        """Switch to inference mode without gradients; called once by every builder."""
        self.eval()
        return self.requires_grad_(False)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in inference mode: a backbone's statistics never change."""
        return super().train(False)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Preprocess PIL images to a batch (B, 3, S, S)."""
        return torch.stack([self.preprocess(image) for image in images])
