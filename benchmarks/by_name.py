"""Zero-shot retrieval and classification by names and captions: parts of `wide`, and Flickr8k's captions.

    python -m benchmarks.by_name $INTCLIP_DATA --model lite

Photos of a part with the same first caption form a class. Top-1: the class with the nearest first caption. As labels:
the shortest captions as names of a taxonomy, scored through everyday scenes. Captions: recall among the photos.
"""

import argparse
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.ordinary import measure
from intclip.backbones import load_backbone
from intclip.backbones.lite import LiteBackbone, LiteHead
from intclip.evaluation.retrieval import retrieval_recall
from intclip.inference.loading import SCENES_THRESHOLD
from intclip.labels.reading import parse_taxonomy
from intclip.methods.registry import build_method
from intclip.training.captioned import CaptionedPhotos, photo_views, read_captions

CLASSES = ("imagenet", "sun", "clothing", "fruits", "pacs")
"""Prefixes of photo names in `wide`."""


def embedded(backbone: LiteBackbone, photos: list[Path]) -> Tensor:
    """Return embeddings (N, D), unnormalised."""
    whole = photo_views(backbone, photos, window=backbone.grid[0])[:, 0].float()
    with torch.no_grad():
        return cast(LiteHead, backbone.head).project(whole)


def by_name(backbone: LiteBackbone, data: CaptionedPhotos, part: str) -> str:
    """Return a line of figures for photos whose name starts with `part`."""
    rows = [row for row, photo in enumerate(data.photos) if photo.name.startswith(part)]
    captions = [[data.captions[place] for place in (data.owner == row).nonzero().flatten()] for row in rows]
    first = {own[0]: min(own, key=len) for own in captions}
    truth = torch.tensor([[own[0] == caption for caption in first] for own in captions])
    images = embedded(backbone, [data.photos[row] for row in rows])
    nearest = (F.normalize(images, dim=1) @ backbone.embed_texts(list(first)).T).argmax(dim=1, keepdim=True)
    top1 = 100 * truth.gather(1, nearest).float().mean()
    labels = parse_taxonomy([{"name": name} for name in first.values()], part)
    logits = build_method("zero_shot", backbone, labels, {"scenes": True})({"pooled": images}).logits
    own = measure(logits.sigmoid().detach().numpy(), torch.tensor(SCENES_THRESHOLD).numpy(), truth.numpy())
    right = "–" if own["said_plausible"] is None else f"{own['said_plausible']:.1f} %"
    return (
        f"{part}, {len(rows)} photos, {len(first)} names: top-1 {top1:.1f} %; as labels: top-1 {own['top1']:.1f} %, "
        f"predicted {right} right of {own['said']:.2f} a photo, {own['clear']:.1f} % of photos with a label"
    )


def recall(backbone: LiteBackbone, data: CaptionedPhotos, part: str, limit: int) -> str:
    """Return recall of captions among the first `limit` photos whose name starts with `part`."""
    rows = [row for row, photo in enumerate(data.photos) if photo.name.startswith(part)][:limit]
    kept = torch.isin(data.owner, torch.tensor(rows))
    texts = [caption for caption, own in zip(data.captions, kept.tolist(), strict=True) if own]
    owner = torch.searchsorted(torch.tensor(rows), data.owner[kept])
    found = retrieval_recall(embedded(backbone, [data.photos[row] for row in rows]), backbone.embed_texts(texts), owner)
    ways = {"text to image": found["text_to_image"], "image to text": found["image_to_text"]}
    figures = (f"{way} R@1 {at['R@1']:.1f}, R@10 {at['R@10']:.1f}" for way, at in ways.items())
    return f"{len(rows)} photos, {len(texts)} captions: {'; '.join(figures)}"


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the data sets")
    parser.add_argument("--model", default="lite")
    parser.add_argument("--parts", nargs="*", default=CLASSES)
    asked = parser.parse_args()
    backbone = cast(LiteBackbone, load_backbone(asked.model))
    wide = read_captions(asked.root / "wide", "captions_train.json")
    for part in asked.parts:
        print(by_name(backbone, wide, part), flush=True)
    print("COCO:", recall(backbone, wide, "coco", 1000), flush=True)
    print("Flickr8k:", recall(backbone, read_captions(asked.root / "flickr8k", "captions_val.json"), "", 1000))


if __name__ == "__main__":
    main()
