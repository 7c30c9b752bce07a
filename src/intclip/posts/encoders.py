"""What a post is turned into before a head reads it: embeddings of its words and of its photo."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import IntclipError
from intclip.extras import require

if TYPE_CHECKING:
    from PIL import Image

    from intclip.backbones.base import Backbone
    from intclip.labels.taxonomy import Taxonomy

Floats = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Floats]
"""Texts to embeddings (T, D), of any length."""

DEFAULT_TEXT_ENCODER = "minilm"
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_SENTENCE_SHARE = 0.5
"""Weight of a post's best sentence beside the post as a whole, where class sentences are compared with it."""


@dataclass(frozen=True, eq=False)
class Raw:
    """One channel of N posts, before anything was fitted.

    Attributes:
        dense: Block name to embeddings (N, D).
        anchors: Similarity (N, K) with the classes' own sentences.
        texts: The words themselves, for word counts; None for photos.
    """

    dense: dict[str, Floats]
    anchors: Floats
    texts: list[str] | None = None

    def __len__(self) -> int:
        """Number of posts N."""
        return len(self.anchors)

    def take(self, rows: npt.ArrayLike) -> "Raw":
        """Some of the posts."""
        index = np.asarray(rows, dtype=np.int64)
        texts = None if self.texts is None else [self.texts[i] for i in index]
        return Raw({name: block[index] for name, block in self.dense.items()}, self.anchors[index], texts)


def text_encoder(name: str, backbone: "Backbone") -> Encode:
    """An encoder of texts.

    Args:
        name: "minilm" or "backbone" (the text tower of the backbone: MiniLM for lite, CLIP's for a CLIP), or the folder
            of a sentence-transformers model, which is read from disk and never from a network.
        backbone: The backbone whose text tower is meant.

    Raises:
        IntclipError: There is no such encoder.
    """
    if name in (DEFAULT_TEXT_ENCODER, "backbone"):
        if name == DEFAULT_TEXT_ENCODER and backbone.name not in LITE_BACKBONES:
            from intclip.backbones import load_backbone

            backbone = load_backbone("lite")
        return tower_encoder(backbone)
    folder = Path(name)
    if not (folder / "modules.json").is_file():
        raise IntclipError(
            f"no text encoder {name!r}: choose minilm, backbone, or the folder of a sentence-transformers model"
        )
    library = require("sentence_transformers", "posts")
    model = library.SentenceTransformer(
        os.fspath(folder),
        device="cpu",
        local_files_only=True,
        trust_remote_code=False,
        model_kwargs={"use_safetensors": True},  # a checkpoint that is a pickle could run code
    )

    def encode(texts: Sequence[str]) -> Floats:
        return np.asarray(model.encode(list(texts), show_progress_bar=False), dtype=np.float32)

    return encode


def tower_encoder(backbone: "Backbone", *, batch_size: int = 32) -> Encode:
    """An encoder from a backbone's text tower; a text over its context length is read in pieces and averaged."""
    tower = backbone.text

    def fits(text: str) -> bool:
        try:
            tower.tokenize([text])
        except IntclipError:
            return False
        return True

    def pieces(text: str) -> list[str]:
        if fits(text):
            return [text]
        words = text.split()
        if len(words) < 2:
            return pieces(text[: len(text) // 2]) + pieces(text[len(text) // 2 :])
        half = len(words) // 2
        return pieces(" ".join(words[:half])) + pieces(" ".join(words[half:]))

    def encode(texts: Sequence[str]) -> Floats:
        parts = [pieces(text) for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
        # Each once: a text and the same text without a word share most of their sentences.
        places: dict[str, int] = {}
        place = [places.setdefault(piece, len(places)) for part in parts for piece in part]
        flat = list(places)
        found = np.zeros((len(flat), tower.embed_dim), dtype=np.float32)
        device = next(tower.parameters()).device
        # Texts of like length together: little padding.
        order = sorted(range(len(flat)), key=lambda i: len(flat[i]))
        with torch.no_grad():
            for start in range(0, len(flat), batch_size):
                rows = order[start : start + batch_size]
                found[rows] = tower(tower.tokenize([flat[i] for i in rows]).to(device)).float().cpu().numpy()
        total = np.zeros((len(texts), tower.embed_dim), dtype=np.float32)
        np.add.at(total, owner, found[place])
        return total / np.bincount(owner, minlength=len(texts)).astype(np.float32)[:, None]

    return encode


def class_sentences(taxonomy: "Taxonomy") -> list[list[str]]:
    """Every form of words that somebody wrote for the K classes: HCI sentences and definitions, else the names."""
    forms = [list(taxonomy.sentence_forms[form]) for form in taxonomy.written]
    if taxonomy.definitions:
        forms.append([taxonomy.definitions.get(name, name) for name in taxonomy.names])
    return forms or [list(taxonomy.names)]


def encode_classes(sentences: Sequence[Sequence[str]], encode: Encode) -> list[Floats]:
    """Unit vectors (K, D) of every form of the class sentences (see `class_sentences`), which posts are compared with.

    Args:
        sentences: Forms of K sentences.
        encode: Of words, to compare with texts; of a backbone's text tower, to compare with photos.
    """
    return [unit(encode(form)) for form in sentences]


def encode_texts(texts: Sequence[str], encode: Encode, classes: Sequence[Floats]) -> Raw:
    """The text channel of posts.

    Args:
        texts: N texts.
        encode: The encoder.
        classes: Of `encode_classes` by the same encoder.
    """
    texts = list(texts)
    split = [[part for part in _SENTENCE_END.split(text.strip()) if part.strip()] or [text] for text in texts]
    owner = np.repeat(np.arange(len(texts)), [len(parts) for parts in split])
    whole = unit(encode(texts))
    parts = unit(encode([part for group in split for part in group]))
    mean = np.zeros_like(whole)
    np.add.at(mean, owner, parts)
    anchors = np.zeros((len(texts), len(classes[0])), dtype=np.float32)
    for form in classes:
        best = np.full(anchors.shape, -1.0, dtype=np.float32)
        np.maximum.at(best, owner, parts @ form.T)
        anchors += (whole @ form.T + _SENTENCE_SHARE * best) / len(classes)
    return Raw({"text": whole, "sentences": unit(mean)}, anchors, texts)


def encode_photos(
    photos: "Iterable[Image.Image]",
    backbone: "Backbone",
    classes: Sequence[Floats],
    *,
    batch_size: int = 16,
    report: Callable[[int, int], None] | None = None,
    total: int = 0,
) -> Raw:
    """The image channel of posts: last feature map, averaged, and the embedding in the joint space.

    Args:
        photos: PIL images, taken one batch at a time.
        backbone: The frozen backbone.
        classes: Of `encode_classes` by the backbone's own text tower.
        batch_size: Photos computed at once.
        report: Told the number done and `total`.
        total: Number of photos, for `report`.
    """
    deep: list[npt.NDArray[Any]] = []
    pooled: list[npt.NDArray[Any]] = []
    batch: list[torch.Tensor] = []
    done = 0

    def flush() -> None:
        nonlocal done
        with torch.no_grad():
            last = backbone.deep(backbone.trunk(torch.stack(batch)))
            pooled.append(backbone.head.pooled(last).float().numpy())
            kept = backbone.deep_map(last)
            deep.append((kept.mean(dim=(2, 3)) if kept.ndim == 4 else kept.mean(dim=1)).float().numpy())
        done += len(batch)
        batch.clear()
        if report is not None:
            report(done, total)

    for photo in photos:
        batch.append(backbone.preprocess(photo))
        if len(batch) == batch_size:
            flush()
    if batch:
        flush()
    return _photo_channel(np.concatenate(deep), np.concatenate(pooled), classes)


def has_regions(backbone: "Backbone") -> bool:
    """Whether the backbone's deep layers give a feature map, whose regions `without_regions` can leave out."""
    size = backbone.preprocess.size
    with torch.no_grad():
        last: torch.Tensor = backbone.deep(backbone.trunk(torch.zeros(1, 3, size, size)))
    return last.ndim == 4


def without_regions(
    photo: "Image.Image", backbone: "Backbone", classes: Sequence[Floats]
) -> tuple[Raw, tuple[int, int]]:
    """The image channel of a photo, then of the same photo without each region of the last feature map, row by row.

    A region that is left out holds the mean of all others, so that the mean over the map is theirs.

    Returns:
        1 + h · w rows, and the grid (h, w).

    Raises:
        IntclipError: The backbone's deep layers give no feature map.
    """
    with torch.no_grad():
        last = backbone.deep(backbone.trunk(backbone.preprocess(photo)[None]))
        if last.ndim != 4:
            raise IntclipError(
                f"backbone {backbone.name} has no feature map; its photos cannot be explained by regions"
            )
        _, channels, height, width = last.shape
        count = height * width
        flat = last.reshape(channels, count)
        others = (flat.sum(dim=1, keepdim=True) - flat) / max(count - 1, 1)
        maps = flat.repeat(1 + count, 1, 1)
        for region in range(count):
            maps[1 + region, :, region] = others[:, region]
        maps = maps.reshape(1 + count, channels, height, width)
        pooled, deep = backbone.head.pooled(maps).float().numpy(), backbone.deep_map(maps).mean(dim=(2, 3))
    return _photo_channel(deep.float().numpy(), pooled, classes), (height, width)


def _photo_channel(deep: npt.NDArray[Any], pooled: npt.NDArray[Any], classes: Sequence[Floats]) -> Raw:
    embedded = unit(pooled)
    anchors = np.mean([embedded @ form.T for form in classes], axis=0).astype(np.float32)
    # The root of features that are nowhere negative lets faint evidence count beside strong.
    features = np.sqrt(deep) if deep.min() >= 0 else deep
    return Raw({"deep": features, "joint": embedded}, anchors)


def unit(rows: npt.NDArray[np.floating[Any]]) -> Floats:
    """Rows of length one; a row of zeros stays."""
    length = np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return np.asarray(rows / length, dtype=np.float32)
