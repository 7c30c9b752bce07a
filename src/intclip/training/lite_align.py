"""`lite-align`: train the map from the image tower's features into the sentence space, from captioned photos.

The towers stay as they are, so their features are computed once; what trains is the linear map of `LiteHead` alone, by
the symmetric contrastive loss of CLIP (Radford et al., 2021, figure 3) over photos and one of their captions each. A
second set of photos may be mixed in at a fixed share, so that photos of everyday things do not drown the recall of
captions; photos of one class count as each other's positives (UniCL, Yang et al., CVPR 2022). Beside the photos stand
the 1,000 ImageNet classes: their names as sentences, and as images the features that the tower's own classifier takes
for each class, so that what no caption speaks of keeps its place in the space.
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
    """How a projection is trained; the built-in values stand in `recipes/align/lite-align.yaml`.

    Attributes:
        epochs: Passes over the photos.
        batch_size: Photos a step, each with one of its captions.
        lr: Largest learning rate of AdamW; it rises over `warmup_steps` and falls as a cosine.
        warmup_steps: Steps of the rise.
        weight_decay: AdamW's, on weights.
        logit_scale: Multiplies cosines; the inverse of the temperature.
        dropout: Share of the features set to zero in training.
        window: Side of the square parts of the feature map whose means are further views of a photo, in positions.
        names_weight: Weight of the loss over ImageNet's class names; 0 leaves them out.
        names_batch: Classes a step.
        prototype_scale: How far a class's prototype lies from the mean photo; see `class_prototypes`.
        prototype_noise: Up to this much of an ordinary photo's deviation is added to a prototype.
        class_share: Length of the classifier's part of an embedding, whose linear part has length 1; see `LiteHead`.
        also_share: Share of a batch that comes from the second set of photos, where there is one.
        leave_out: Photos of the second set whose names start so are not trained on, to measure with.
        seed: Same seed, same projection.
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
    """The built-in recipe, or it with the values that a YAML file gives instead.

    Raises:
        RecipeError: The file cannot be read, is not valid, or has an unknown key.
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
    """What the mean features of each class may look like, (K, C), from a classifier over them and ordinary photos.

    Were the classifier a linear discriminant, w = Σ⁻¹ (μ_c − μ), the class would lie in the direction Σ w from the
    mean photo; were the features white, in the direction w. The one between, Σ^½ w, comes nearest to real photos that
    the classifier is sure of (lite_projection.md). Clamped at 0, as features are.

    Args:
        weight: (K, C) of the classifier.
        features: (N, C) of ordinary photos, for μ and Σ.
        scale: Distance from μ, before clamping.
    """
    # In double precision: of fewer photos than features Σ is singular, and MKL's single-precision solver may give NaN.
    values, vectors = torch.linalg.eigh(torch.cov(features.T.double()))
    directions = (weight - weight.mean(dim=0)).double() @ vectors * values.clamp(min=0).sqrt() @ vectors.T
    return (features.mean(dim=0) + scale * F.normalize(directions, dim=1).to(features)).clamp(min=0)


@dataclass(frozen=True)
class AlignmentSet:
    """Features to train a projection on.

    Attributes:
        views: (N, V, C) of photos, at least 0; the first view is the whole photo.
        texts: (T, D) normalised, of captions.
        owner: (T,) int64, each caption's photo; captions of one photo stand together.
        group: (N,) int64, equal for photos of one class.
        also: How many photos, at the end, are the second set.
    """

    views: Tensor
    texts: Tensor
    owner: Tensor
    group: Tensor
    also: int = 0


class _Map(nn.Module):
    """The head in training: its linear map reads standardised roots of features, which `head` folds into it."""

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
        """Unit embeddings (B, D) of the features (B, C) of photos or of their parts."""
        x = (features.sqrt() - self.mean) / self.std
        kept = torch.rand(x.shape, generator=self.generator) >= self.dropout
        linear = F.linear(x * kept / (1 - self.dropout), self.weight, self.bias)
        return F.normalize(F.normalize(linear, dim=1) + self.head.class_part(features), dim=1)

    @torch.no_grad()
    def finished(self) -> LiteHead:
        """The head with what was learned."""
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
    """A head trained by contrast, and its last loss.

    Args:
        data: Photos and captions.
        classes: The image tower's K classes.
        forms: (F, K, D) normalised, the classes' names in F forms.
        recipe: How.
        progress: Called with steps done and steps in all.

    Raises:
        DatasetError: There are fewer than two photos.
    """
    count = len(data.views)
    if count < 2:
        raise DatasetError(f"contrast needs at least two photos with captions, not {count}")
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
    """Batches of a part of the first set in random order, and a fixed share of random photos of the second."""

    def __init__(self, data: AlignmentSet, recipe: AlignRecipe, generator: torch.Generator) -> None:
        self.data, self.generator = data, generator
        self.first = len(data.views) - data.also
        self.also = round(recipe.batch_size * recipe.also_share) if data.also else 0
        self.size = min(recipe.batch_size - self.also, self.first)
        self.steps = recipe.epochs * (self.first // self.size)
        self.captions = torch.bincount(data.owner, minlength=len(data.views))
        self.start = torch.searchsorted(data.owner, torch.arange(len(data.views)))

    def epoch(self) -> Iterator[Tensor]:
        """Rows of photos, batch by batch."""
        order = torch.randperm(self.first, generator=self.generator)
        for rows in order[: self.first // self.size * self.size].view(-1, self.size):
            others = torch.randint(self.data.also, (self.also,), generator=self.generator) if self.also else rows[:0]
            yield torch.cat([rows, self.first + others])

    def draw(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C) of one view of each photo, and one of its captions (B, D)."""
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
        group: (B,) int64: pairs of one group are each other's positives too, all of the same weight; by default each
            pair is a group of its own.
    """
    logits = logit_scale * images @ texts.T
    group = torch.arange(len(logits)) if group is None else group
    positive = (group[:, None] == group).float()
    positive = positive / positive.sum(dim=1, keepdim=True)  # symmetric: rows of one group have as many ones
    return (F.cross_entropy(logits, positive) + F.cross_entropy(logits.T, positive)) / 2


NAME_FORMS = ("{}", "a {}", "a photo of a {}", "there is a {} in the photo")
"""Sentences around a class name."""


@dataclass(frozen=True)
class AlignReport:
    """What an alignment gave.

    Attributes:
        photos: Photos trained on.
        captions: Captions trained on.
        loss: The last step's.
        recall: On the photos kept for it; None without any.
        recall_photos: How many photos `recall` is about.
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
        recipe: How.
        files: Caption files to train on, and to measure recall on its first 1,000 photos; None does not measure.
        also: A second folder, with a caption file of the same name; see `AlignRecipe.also_share`.
        name: Whose image tower: one of `LITE_BACKBONES`.
        progress: Gives a progress callback for each named part of the work, or None for silence.

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
    """Mean (D,) and covariance (D, D) of unit embeddings of whole photos; two sets count alike, of whatever size."""
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
