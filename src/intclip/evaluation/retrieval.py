"""Caption retrieval: is a photo's own caption, or a caption's own photo, among the nearest?"""

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
    """Recall at 1, 5, 10 by cosine, both ways; a tie counts for the one that is looked for.

    Args:
        images: (N, D), of any length.
        texts: (T, D), of any length.
        owner: (T,) int64, each text's photo; every photo needs at least one.

    Raises:
        ValueError: A photo has no text.
    """
    rows = torch.arange(len(images))
    if not torch.isin(rows, owner).all():
        raise ValueError("every photo needs a text of its own")
    similarity = F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    own = similarity[owner, torch.arange(len(texts))]
    text_rank = (similarity > own).sum(dim=0)
    best = torch.full((len(images),), -torch.inf).scatter_reduce(0, owner, own, "amax")
    image_rank = (similarity > best[:, None]).sum(dim=1)
    return {"text_to_image": _recall(text_rank), "image_to_text": _recall(image_rank)}


def _recall(rank: Tensor) -> dict[str, float]:
    return {f"R@{k}": 100 * (rank < k).double().mean().item() for k in RANKS}
