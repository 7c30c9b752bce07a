"""`lite-align`: train the map from the image tower's features into the sentence space, from captioned photos.

The towers stay as they are, so their features are computed once; what trains is `LiteHead` alone, by the symmetric
contrastive loss of CLIP (Radford et al., 2021, figure 3) over photos and one of their captions each. Beside the photos
stand the 1,000 ImageNet classes: their names as sentences, and as images the features that the tower's own classifier
takes for each class, so that what no caption speaks of keeps its place in the space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from intclip.backbones.lite import LiteHead, build_towers, imagenet_classifier, write_projection
from intclip.data.reading import read_text
from intclip.errors import DatasetError, RecipeError
from intclip.evaluation.retrieval import Recall, retrieval_recall
from intclip.strict_yaml import parse_yaml
from intclip.training.captioned import Progress, imagenet_names, photo_views, read_captions, sentence_features
from intclip.training.recipe_file import nearest_hint

BUILTIN = "recipes/align/lite-align.yaml"


class AlignRecipe(BaseModel, frozen=True, extra="forbid"):
    """How a projection is trained; the built-in values stand in `recipes/align/lite-align.yaml`.

    Attributes:
        epochs: Passes over the photos.
        batch_size: Photos a step, each with one of its captions.
        lr: Largest learning rate of AdamW; it rises over `warmup_steps` and falls as a cosine.
        warmup_steps: Steps of the rise.
        weight_decay: Of AdamW, on weights.
        logit_scale: Multiplies cosines; the inverse of the temperature.
        dropout: Share of the features set to zero in training.
        window: Side of the square parts of the feature map whose means are further views of a photo, in positions.
        names_weight: Weight of the loss over ImageNet's class names; 0 leaves them out.
        names_batch: Classes a step.
        prototype_scale: How far a class's prototype lies from the mean photo; see `class_prototypes`.
        prototype_noise: Up to this much of an ordinary photo's deviation is added to a prototype.
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
        prototypes: (K, C) of classes; None without.
        names: (F, K, D) normalised, of the classes' names in F forms; None without.
    """

    views: Tensor
    texts: Tensor
    owner: Tensor
    prototypes: Tensor | None = None
    names: Tensor | None = None


def train_head(data: AlignmentSet, recipe: AlignRecipe, progress: Progress | None = None) -> tuple[LiteHead, float]:
    """A head trained by contrast, and its last loss.

    Raises:
        DatasetError: There are fewer than two photos.
    """
    count, _, channels = data.views.shape
    if count < 2:
        raise DatasetError(f"contrast needs at least two photos with captions, not {count}")
    generator = torch.Generator().manual_seed(recipe.seed)
    whole = data.views[:, 0].float()
    root_mean, root_std = whole.sqrt().mean(dim=0), whole.sqrt().std(dim=0) + 1e-3
    weight = torch.empty(data.texts.shape[1], channels)
    weight = weight.uniform_(-1, 1, generator=generator).div_(math.sqrt(channels)).requires_grad_()
    bias = torch.zeros(len(weight), requires_grad=True)
    groups = [{"params": [weight], "weight_decay": recipe.weight_decay}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98))
    size = min(recipe.batch_size, count)
    steps = recipe.epochs * (count // size)
    first = torch.searchsorted(data.owner, torch.arange(count))
    captions = torch.bincount(data.owner, minlength=count)
    deviation = whole - whole.mean(dim=0)

    def embed(features: Tensor) -> Tensor:
        x = (features.sqrt() - root_mean) / root_std
        kept = torch.rand(x.shape, generator=generator) >= recipe.dropout
        return F.normalize(F.linear(x * kept / (1 - recipe.dropout), weight, bias), dim=1)

    step, loss = 0, torch.zeros(())
    for _ in range(recipe.epochs):
        for rows in torch.randperm(count, generator=generator)[: count // size * size].view(-1, size):
            for group in optimizer.param_groups:
                rise = min(1.0, (step + 1) / recipe.warmup_steps)
                group["lr"] = recipe.lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            views = torch.randint(data.views.shape[1], (size,), generator=generator)
            chosen = first[rows] + (torch.rand(size, generator=generator) * captions[rows]).long()
            images = embed(data.views[rows, views].float())
            loss = contrastive_loss(images, data.texts[chosen], recipe.logit_scale)
            if data.prototypes is not None and data.names is not None and recipe.names_weight > 0:
                classes = torch.randint(len(data.prototypes), (recipe.names_batch,), generator=generator)
                others = torch.randint(count, (recipe.names_batch,), generator=generator)
                share = torch.rand(recipe.names_batch, 1, generator=generator) * recipe.prototype_noise
                features = (data.prototypes[classes] + share * deviation[others]).clamp(min=0)
                form = int(torch.randint(len(data.names), (1,), generator=generator))
                logits = recipe.logit_scale * embed(features) @ data.names[form].T
                loss = loss + recipe.names_weight * F.cross_entropy(logits, classes)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            step += 1
            if progress is not None:
                progress(step, steps)
    head = LiteHead(channels, len(weight))
    with torch.no_grad():
        head.projection.weight.copy_(weight / root_std)
        head.projection.bias.copy_(bias - (weight / root_std) @ root_mean)
    return head.requires_grad_(False), loss.item()


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
    """Mean of the cross-entropies of finding each image's text and each text's image, of normalised (B, D) pairs."""
    logits = logit_scale * images @ texts.T
    own = torch.arange(len(logits))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


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
    train: str = "captions_train.json",
    val: str | None = "captions_val.json",
    limit: int | None = 1000,
    name: str = "lite",
    progress: Callable[[str], Progress | None] = lambda _: None,
) -> AlignReport:
    """Train a projection on a folder of captioned photos and write it with the moments of its image embeddings.

    Args:
        root: Folder with the caption files and `images/`.
        out: The safetensors file to write.
        recipe: How.
        train: Caption file to train on.
        val: Caption file to measure recall on; None does not measure.
        limit: Measure on the first so many photos of `val`; None takes all.
        name: Whose image tower: one of `LITE_BACKBONES`.
        progress: Gives a progress callback for each named part of the work, or None for silence.

    Raises:
        DatasetError: A caption file or photo is missing, or the recipe does not fit the data.
        StorageError: `out` cannot be written.
    """
    photos = read_captions(root, train)
    held = None if val is None else read_captions(root, val)
    backbone = build_towers(name=name)
    views = photo_views(backbone, photos.photos, recipe.window, progress("Photos"))
    texts = sentence_features(backbone.text, photos.captions, progress("Captions"))
    whole = views[:, 0].float()
    prototypes = names = None
    if recipe.names_weight > 0:
        prototypes = class_prototypes(imagenet_classifier(name)[0], whole, recipe.prototype_scale)
        classes = imagenet_names()
        names = torch.stack(
            [sentence_features(backbone.text, [form.format(name) for name in classes]) for form in NAME_FORMS]
        )
    data = AlignmentSet(views, texts, photos.owner, prototypes, names)
    head, loss = train_head(data, recipe, progress("Projection"))
    embeddings = F.normalize(head.project(whole), dim=1)
    write_projection(out, head, (embeddings.mean(dim=0), torch.cov(embeddings.T)))
    recall, measured = None, 0
    if held is not None:
        measured = len(held.photos) if limit is None else min(limit, len(held.photos))
        texts_of = held.owner < measured
        captions = [caption for caption, own in zip(held.captions, texts_of.tolist(), strict=True) if own]
        images = head.project(photo_views(backbone, held.photos[:measured], recipe.window)[:, 0].float())
        recall = retrieval_recall(images, sentence_features(backbone.text, captions), held.owner[texts_of])
    return AlignReport(len(photos.photos), len(photos.captions), loss, recall, measured)
