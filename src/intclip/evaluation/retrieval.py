"""Caption retrieval: recall of a photo's captions and of a caption's photo among the nearest."""

from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

RANKS = (1, 5, 10)


class Recall(TypedDict):
    """Recall at 1, 5 and 10, in percent, by direction.

    Attributes:
        text_to_image: Share of captions whose photo is among the first.
        image_to_text: Share of photos with one of their captions among the first.
    """

    text_to_image: dict[str, float]
    image_to_text: dict[str, float]


def retrieval_recall(images: Tensor, texts: Tensor, owner: Tensor) -> Recall:
    """Compute recall at 1, 5, 10 by cosine, in both directions; ties count as hits.

    Args:
        images: (N, D), any norm.
        texts: (T, D), any norm.
        owner: (T,) int64, each text's photo; every photo needs at least one.

    Raises:
        ValueError: A photo has no text.
    """
    rows = torch.arange(len(images))
    if not torch.isin(rows, owner).all():
        raise ValueError("every photo needs a text")
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    own = similarity[owner, torch.arange(len(texts))]
    text_rank = (similarity > own).sum(dim=0)
    best = torch.full((len(images),), -torch.inf).scatter_reduce(0, owner, own, "amax")
    image_rank = (similarity > best[:, None]).sum(dim=1)
    return {"text_to_image": _recall(text_rank), "image_to_text": _recall(image_rank)}


def _recall(rank: Tensor) -> dict[str, float]:
    return {f"R@{k}": 100 * (rank < k).double().mean().item() for k in RANKS}
