"""`lite-align`: train the projection from image features to the sentence space, on captioned photos.

The towers are frozen, so their features are computed once; only the linear map of `LiteHead` is trained,
with the symmetric contrastive loss of CLIP (Radford et al., 2021, figure 3) on photos and one of their captions each. A
second set of photos may be mixed in at a fixed share, so that everyday photos do not reduce caption recall; photos of
one class are positives of each other (UniCL, Yang et al., CVPR 2022). The 1,000 ImageNet classes are added, with their
names as sentences and prototypes from the tower's classifier as images, so that concepts absent from captions keep
their place in the space.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn

from intclip.backbones.lite import (
    ImagenetClasses,
    LiteBackbone,
    LiteHead,
    build_towers,
    imagenet_classes,
    write_projection,
)
from intclip.data.reading import read_text
from intclip.errors import DatasetError, RecipeError
from intclip.evaluation.retrieval import Recall, retrieval_recall
from intclip.strict_yaml import parse_yaml
from intclip.training.captioned import CaptionedPhotos, Progress, imagenet_names, photo_views, read_captions
from intclip.training.recipe_file import nearest_hint

BUILTIN = "recipes/align/lite-align.yaml"
RECALL_PHOTOS = 1000


class AlignRecipe(BaseModel, frozen=True, extra="forbid"):
    """Settings of the training; defaults are in `recipes/align/lite-align.yaml`.

    Attributes:
        epochs: Passes over the photos.
        batch_size: Photos per step, each with one of its captions.
        lr: Peak learning rate of AdamW, with linear warm-up over `warmup_steps` and cosine decay.
        warmup_steps: Warm-up steps.
        weight_decay: AdamW's, on weights.
        logit_scale: Multiplies cosines; the inverse of the temperature.
        dropout: Share of the features set to zero in training.
        window: Side of the square parts of the feature map whose means are further views of a photo, in positions.
        names_weight: Weight of the loss over ImageNet's class names; 0 disables it.
        names_batch: Classes per step.
        prototype_scale: Distance of a class's prototype from the mean photo; see `class_prototypes`.
        prototype_noise: Maximum share of an ordinary photo's deviation added to a prototype.
        class_share: Norm of the classifier's part of an embedding, relative to the linear part; see `LiteHead`.
        also_share: Share of a batch from the second set of photos, if any.
        leave_out: Name prefixes of photos of the second set that are held out.
        seed: Random seed.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=2)
    lr: float = Field(gt=0)
    warmup_steps: int = Field(ge=1)
    weight_decay: float = Field(ge=0)
    logit_scale: float = Field(gt=0)
    dropout: float = Field(ge=0, lt=1)
    window: int = Field(ge=1)
    names_weight: float = Field(ge=0)
    names_batch: int = Field(ge=1)
    prototype_scale: float = Field(ge=0)
    prototype_noise: float = Field(ge=0)
    class_share: float = Field(ge=0)
    also_share: float = Field(ge=0, lt=1)
    leave_out: tuple[str, ...]
    seed: int


def load_align_recipe(path: Path | None = None) -> AlignRecipe:
    """Load the built-in recipe with the overrides of a YAML file.

    Raises:
        RecipeError: The file cannot be read, is invalid, or has an unknown key.
    """
    source = files("intclip").joinpath(BUILTIN)
    content: dict[str, Any] = parse_yaml(source.read_text(encoding="utf-8"))
    where = "lite-align"
    if path is not None:
        where = str(path)
        try:
            delta = parse_yaml(read_text(path))
        except (DatasetError, ValueError) as error:
            raise RecipeError(f"{path}: {error}") from error
        if not isinstance(delta, dict):
            raise RecipeError(f"{path}: a recipe is a mapping, such as `lr: 0.001`")
        content |= delta
    try:
        return AlignRecipe(**content)
    except ValidationError as error:
        raise nearest_hint(error, AlignRecipe, where, "") from error


def class_prototypes(weight: Tensor, features: Tensor, scale: float) -> Tensor:
    """Estimate the mean features of each class, (K, C), from a classifier and ordinary photos.

    For a linear discriminant, w = Σ⁻¹ (μ_c − μ), the class mean lies in the direction Σ w from the mean photo; for
    white features, in the direction w. The intermediate direction Σ^½ w is nearest to real photos that the classifier
    is sure of (lite_projection.md). Prototypes are clamped at 0, like features.

    Args:
        weight: (K, C) of the classifier.
        features: (N, C) of ordinary photos, for μ and Σ.
        scale: Distance from μ, before clamping.
    """
    # In double precision: with fewer photos than features Σ is singular, and MKL's single-precision solver may give
    # NaN.
    values, vectors = torch.linalg.eigh(torch.cov(features.T.double()))
    directions = (weight - weight.mean(dim=0)).double() @ vectors * values.clamp(min=0).sqrt() @ vectors.T
    return (features.mean(dim=0) + scale * F.normalize(directions, dim=1).to(features)).clamp(min=0)


@dataclass(frozen=True)
class AlignmentSet:
    """Training features of a projection.

    Attributes:
        views: (N, V, C) of photos, at least 0; the first view is the whole photo.
        texts: (T, D) normalised, of captions.
        owner: (T,) int64, each caption's photo; captions of a photo are consecutive.
        group: (N,) int64, equal for photos of one class.
        also: Number of photos of the second set, at the end.
    """

    views: Tensor
    texts: Tensor
    owner: Tensor
    group: Tensor
    also: int = 0


class _Map(nn.Module):
    """The head in training, on standardised roots of features; `head` folds the standardisation into it."""

    def __init__(
        self, data: AlignmentSet, classes: ImagenetClasses, recipe: AlignRecipe, generator: torch.Generator
    ) -> None:
        super().__init__()
        roots = data.views[:, 0].float().sqrt()
        self.mean, self.std = roots.mean(dim=0), roots.std(dim=0) + 1e-3
        self.dropout, self.generator = recipe.dropout, generator
        dim, channels = data.texts.shape[1], roots.shape[1]
        start = torch.empty(dim, channels).uniform_(-1, 1, generator=generator).div_(math.sqrt(channels))
        self.weight, self.bias = nn.Parameter(start), nn.Parameter(torch.zeros(dim))
        self.head = LiteHead(classes).requires_grad_(False)
        self.head.class_share.fill_(recipe.class_share)

    def forward(self, features: Tensor) -> Tensor:
        """Compute unit embeddings (B, D) of features (B, C)."""
        x = (features.sqrt() - self.mean) / self.std
        kept = torch.rand(x.shape, generator=self.generator) >= self.dropout
        linear = F.linear(x * kept / (1 - self.dropout), self.weight, self.bias)
        return F.normalize(F.normalize(linear, dim=1) + self.head.class_part(features), dim=1)

    @torch.no_grad()
    def finished(self) -> LiteHead:
        """Return the trained head."""
        weight = self.weight / self.std
        self.head.projection.weight.copy_(weight)
        self.head.projection.bias.copy_(self.bias - weight @ self.mean)
        return self.head


def train_head(
    data: AlignmentSet,
    classes: ImagenetClasses,
    forms: Tensor,
    recipe: AlignRecipe,
    progress: Progress | None = None,
) -> tuple[LiteHead, float]:
    """Train a head with the contrastive loss; return it with its last loss.

    Args:
        data: Photos and captions.
        classes: The image tower's K classes.
        forms: (F, K, D) normalised, the classes' names in F forms.
        recipe: Settings.
        progress: Called with completed and total steps.

    Raises:
        DatasetError: There are fewer than two photos.
    """
    count = len(data.views)
    if count < 2:
        raise DatasetError(f"training needs at least two photos with captions, not {count}")
    generator = torch.Generator().manual_seed(recipe.seed)
    mapped = _Map(data, classes, recipe, generator)
    groups = [
        {"params": [mapped.weight], "weight_decay": recipe.weight_decay},
        {"params": [mapped.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    batches = _Batches(data, recipe, generator)
    whole = data.views[:, 0].float()
    deviation = whole - whole.mean(dim=0)
    prototypes = class_prototypes(classes.weight, whole, recipe.prototype_scale)
    step, loss = 0, torch.zeros(())
    for _ in range(recipe.epochs):
        for rows in batches.epoch():
            for group in optimizer.param_groups:
                rise = min(1.0, (step + 1) / recipe.warmup_steps)
                group["lr"] = recipe.lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / batches.steps))
            features, texts = batches.draw(rows)
            loss = contrastive_loss(mapped(features), texts, recipe.logit_scale, data.group[rows])
            if recipe.names_weight > 0:
                chosen = torch.randint(len(prototypes), (recipe.names_batch,), generator=generator)
                others = torch.randint(count, (recipe.names_batch,), generator=generator)
                share = torch.rand(recipe.names_batch, 1, generator=generator) * recipe.prototype_noise
                features = (prototypes[chosen] + share * deviation[others]).clamp(min=0)
                form = int(torch.randint(len(forms), (1,), generator=generator))
                logits = recipe.logit_scale * mapped(features) @ forms[form].T
                loss = loss + recipe.names_weight * F.cross_entropy(logits, chosen)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
            if progress is not None:
                progress(step, batches.steps)
    return mapped.finished(), loss.item()


class _Batches:
    """Batches of the first set in random order, with a fixed share of random photos of the second."""

    def __init__(self, data: AlignmentSet, recipe: AlignRecipe, generator: torch.Generator) -> None:
        self.data, self.generator = data, generator
        self.first = len(data.views) - data.also
        self.also = round(recipe.batch_size * recipe.also_share) if data.also else 0
        self.size = min(recipe.batch_size - self.also, self.first)
        self.steps = recipe.epochs * (self.first // self.size)
        self.captions = torch.bincount(data.owner, minlength=len(data.views))
        self.start = torch.searchsorted(data.owner, torch.arange(len(data.views)))

    def epoch(self) -> Iterator[Tensor]:
        """Yield rows of photos, batch by batch."""
        order = torch.randperm(self.first, generator=self.generator)
        for rows in order[: self.first // self.size * self.size].view(-1, self.size):
            others = torch.randint(self.data.also, (self.also,), generator=self.generator) if self.also else rows[:0]
            yield torch.cat([rows, self.first + others])

    def draw(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Draw features (B, C) of one view of each photo, and one of its captions (B, D)."""
        views = torch.randint(self.data.views.shape[1], (len(rows),), generator=self.generator)
        share = torch.rand(len(rows), generator=self.generator)
        texts = self.start[rows] + (share * self.captions[rows]).long()
        return self.data.views[rows, views].float(), self.data.texts[texts]


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: float, group: Tensor | None = None) -> Tensor:
    """Mean of the cross-entropies of finding each image's text and each text's image, of normalised (B, D) pairs.

    Args:
        images: (B, D).
        texts: (B, D).
        logit_scale: Multiplies cosines.
        group: (B,) int64: pairs of one group are positives of each other, with equal weights; default: one group per
            pair.
    """
    logits = logit_scale * images @ texts.T
    group = torch.arange(len(logits)) if group is None else group
    positive = (group[:, None] == group).float()
    positive = positive / positive.sum(dim=1, keepdim=True)  # symmetric: rows of one group have as many ones
    return (F.cross_entropy(logits, positive) + F.cross_entropy(logits.T, positive)) / 2


NAME_FORMS = ("{}", "a {}", "a photo of a {}", "there is a {} in the photo")
"""Templates of class names."""


@dataclass(frozen=True)
class AlignReport:
    """Result of an alignment.

    Attributes:
        photos: Number of training photos.
        captions: Number of training captions.
        loss: Loss of the last step.
        recall: Recall on held-out photos; None without any.
        recall_photos: Number of these photos.
    """

    photos: int
    captions: int
    loss: float
    recall: Recall | None
    recall_photos: int


def align(
    root: Path,
    out: Path,
    recipe: AlignRecipe,
    *,
    files: tuple[str, str | None] = ("captions_train.json", "captions_val.json"),
    also: Path | None = None,
    name: str = "lite",
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> AlignReport:
    """Train a projection on folders of captioned photos and write it with the moments of its image embeddings.

    Args:
        root: Folder with the caption files and `images/`.
        out: The safetensors file to write.
        recipe: Settings.
        files: Caption files for training, and for recall on its first 1,000 photos; None skips it.
        also: A second folder, with a caption file of the same name; see `AlignRecipe.also_share`.
        name: One of `LITE_BACKBONES`.
        progress: Returns a progress callback for each stage; None for no output.

    Raises:
        DatasetError: A caption file or photo is missing, or the recipe does not fit the data.
        StorageError: `out` cannot be written.
    """
    train, val = files
    photos = read_captions(root, train)
    second = None if also is None else read_captions(also, train, recipe.leave_out)
    held = None if val is None else read_captions(root, val)
    backbone = build_towers(name=name)
    data = _features(backbone, photos, recipe, progress)
    if second is not None:
        data = _joined(data, _features(backbone, second, recipe, progress))
    forms = [backbone.embed_texts([form.format(name) for name in imagenet_names()]) for form in NAME_FORMS]
    head, loss = train_head(data, imagenet_classes(name), torch.stack(forms), recipe, progress("Projection"))
    write_projection(out, head, image_moments(head, data))
    recall, measured = None, 0
    if held is not None:
        measured = min(RECALL_PHOTOS, len(held.photos))
        texts_of = held.owner < measured
        captions = [caption for caption, own in zip(held.captions, texts_of.tolist(), strict=True) if own]
        images = head.project(photo_views(backbone, held.photos[:measured], recipe.window)[:, 0].float())
        recall = retrieval_recall(images, backbone.embed_texts(captions), held.owner[texts_of])
    return AlignReport(len(data.views), len(data.texts), loss, recall, measured)


def image_moments(head: LiteHead, data: AlignmentSet) -> tuple[Tensor, Tensor]:
    """Return mean (D,) and covariance (D, D) of unit embeddings of whole photos; both sets have equal weight."""
    embeddings = F.normalize(head.project(data.views[:, 0].float()), dim=1)
    first = len(embeddings) - data.also
    sets = [part for part in (embeddings[:first], embeddings[first:]) if len(part)]
    mean = torch.stack([part.mean(dim=0) for part in sets]).mean(dim=0)
    second = torch.stack([part.T @ part / len(part) for part in sets]).mean(dim=0)
    return mean, second - torch.outer(mean, mean)


def _features(
    backbone: LiteBackbone, photos: CaptionedPhotos, recipe: AlignRecipe, progress: Callable[[str], Progress | None]
) -> AlignmentSet:
    views = photo_views(backbone, photos.photos, recipe.window, progress("Photos"))
    texts = backbone.embed_texts(photos.captions, on_progress=progress("Captions"))
    return AlignmentSet(views, texts, photos.owner, photos.group)


def _joined(first: AlignmentSet, second: AlignmentSet) -> AlignmentSet:
    return AlignmentSet(
        torch.cat([first.views, second.views]),
        torch.cat([first.texts, second.texts]),
        torch.cat([first.owner, second.owner + len(first.views)]),
        torch.cat([first.group, second.group + int(first.group.max()) + 1]),
        also=len(second.views),
    )
