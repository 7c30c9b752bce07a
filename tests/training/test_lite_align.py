"""The alignment of `lite`: its parts in closed form, and a small run end to end."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

from intclip.backbones.lite import ImagenetClasses, imagenet_classes, read_projection
from intclip.cli.main import app
from intclip.errors import DatasetError, ImageError, RecipeError
from intclip.training import lite_align
from intclip.training.captioned import imagenet_names, photo_views, read_captions
from intclip.training.lite_align import (
    AlignmentSet,
    _Batches,
    class_prototypes,
    contrastive_loss,
    image_moments,
    load_align_recipe,
    train_head,
)


def pairs(count=64, channels=30, dim=8):
    """Return photos whose caption is a fixed linear map of the roots of their features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(count, 1, channels, generator=generator) * 6
    true_map = torch.randn(dim, channels, generator=generator)
    texts = F.normalize((features[:, 0].sqrt() - features[:, 0].sqrt().mean(dim=0)) @ true_map.T, dim=1)
    return AlignmentSet(features, texts, torch.arange(count), torch.arange(count))


def no_classes(channels=30, dim=8):
    """Return classes without effect: the head is its linear map."""
    return ImagenetClasses(torch.zeros(3, channels), torch.zeros(3), torch.zeros(3, dim))


NO_FORMS = torch.zeros(1, 3, 8)


def small_recipe(**changes):
    values = {"epochs": 1, "batch_size": 32, "lr": 0.01, "warmup_steps": 1, "dropout": 0.0, "names_weight": 0.0}
    values |= {"class_share": 0.0}
    return load_align_recipe().model_copy(update=values | changes)


def test_training_finds_the_map():
    data = pairs()
    _, first = train_head(data, no_classes(), NO_FORMS, small_recipe())
    head, last = train_head(data, no_classes(), NO_FORMS, small_recipe(epochs=60))
    assert last < first / 3
    found = F.normalize(head.project(data.views[:, 0]), dim=1) @ data.texts.T
    assert (found.argmax(dim=1) == torch.arange(64)).float().mean() > 0.95


def test_same_seed_same_projection():
    data = pairs()
    heads = [train_head(data, no_classes(), NO_FORMS, small_recipe(seed=seed, dropout=0.2))[0] for seed in (1, 1, 2)]
    weights = [head.projection.weight for head in heads]
    assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0], weights[2])


def test_names_pull_their_prototypes():
    data = pairs()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(5, 30, generator=generator)
    names = F.normalize(torch.randn(2, 5, 8, generator=generator), dim=2)
    recipe = small_recipe(epochs=60, names_weight=1.0, names_batch=16, prototype_noise=0.1)
    head, _ = train_head(data, ImagenetClasses(weight, torch.zeros(5), names[0]), names, recipe)
    prototypes = class_prototypes(weight, data.views[:, 0], recipe.prototype_scale)
    closeness = F.normalize(head.project(prototypes), dim=1) @ names.mean(dim=0).T
    assert closeness.argmax(dim=1).tolist() == [0, 1, 2, 3, 4]


def test_a_head_knows_what_the_classifier_knows():
    data = pairs()
    names = F.normalize(torch.randn(5, 8), dim=1)
    classes = ImagenetClasses(torch.eye(5, 30) * 50, torch.zeros(5), names)
    head, _ = train_head(data, classes, names[None], small_recipe(class_share=0.5))
    photos = torch.eye(5, 30)  # each is one class, for certain
    assert_close(head.class_part(photos), 0.5 * names, rtol=1e-4, atol=1e-5)
    assert_close(
        head.project(photos) - head.class_part(photos), F.normalize(head.projection(photos)), atol=1e-5, rtol=0
    )


def test_the_second_set_is_a_fixed_share_of_each_batch():
    data = pairs(count=64)
    mixed = replace(data, also=24)
    recipe = small_recipe(batch_size=20, also_share=0.4)
    batches = _Batches(mixed, recipe, torch.Generator().manual_seed(0))
    found = list(batches.epoch())
    assert [(len(rows), int((rows >= 40).sum())) for rows in found] == [(20, 8)] * 3
    first = torch.cat([rows[rows < 40] for rows in found]).tolist()
    assert len(set(first)) == len(first) == 36
    features, texts = batches.draw(found[0])
    assert_close(features, data.views[found[0], 0], rtol=0, atol=0)
    assert_close(texts, data.texts[found[0]], rtol=0, atol=0)


def test_moments_count_two_sets_alike():
    data = replace(pairs(count=30), also=10)
    head, _ = train_head(data, no_classes(), NO_FORMS, small_recipe(batch_size=8))
    mean, covariance = image_moments(head, data)
    x = F.normalize(head.project(data.views[:, 0]), dim=1)
    weight = torch.tensor([1 / 40] * 20 + [1 / 20] * 10)
    assert_close(mean, weight @ x)
    assert_close(covariance, (weight[:, None] * (x - mean)).T @ (x - mean), rtol=1e-4, atol=1e-6)


def test_contrastive_loss_in_closed_form():
    eye = torch.eye(4)
    expected = math.log(math.exp(5) + 3) - 5  # own cosine 1, three others 0, at scale 5
    assert contrastive_loss(eye, eye, 5.0).item() == pytest.approx(expected, rel=1e-6)
    # Pairs of one group share their text: two equal positives have half of the mass each.
    halves = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    first, last = 2 * math.exp(5) + 1, math.exp(5) + 2
    expected = (2 * (math.log(first) - 5) + math.log(last) - 5) / 3
    assert contrastive_loss(halves, halves, 5.0, torch.tensor([7, 7, 3])).item() == pytest.approx(expected, rel=1e-6)
    same = torch.ones(4, 1)
    assert contrastive_loss(same, same, 7.0).item() == pytest.approx(math.log(4), rel=1e-6)


def test_prototypes_lie_where_the_classifier_finds_their_class():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(500, 20, generator=generator) * 3
    weight = torch.randn(6, 20, generator=generator)
    prototypes = class_prototypes(weight, features, 1.0)
    mean = features.mean(dim=0)
    assert prototypes.min() >= 0
    assert ((prototypes - mean) @ weight.T).argmax(dim=1).tolist() == list(range(6))
    assert_close((prototypes - mean).norm(dim=1), torch.ones(6), rtol=1e-4, atol=0)  # nothing was clamped
    white = torch.cat([torch.eye(20), -torch.eye(20)]) + 3  # Σ is a multiple of 1, so Σ^½ w has the direction of w
    centred = F.normalize(weight - weight.mean(dim=0), dim=1)
    assert_close(class_prototypes(weight, white, 2.0), 3 + 2 * centred, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_prototypes_of_few_photos_lie_in_their_span(threads):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(4, 1280, generator=generator) * 3 + 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        prototypes = class_prototypes(torch.randn(6, 1280, generator=generator), features, 1.0)
    finally:
        torch.set_num_threads(before)
    centred = (features - features.mean(dim=0)).double()
    away = (prototypes - features.mean(dim=0)).double()
    # Σ^½ w is in the span of the centred photos for any w.
    inside = away @ torch.linalg.pinv(centred) @ centred
    assert_close(inside, away, rtol=1e-3, atol=1e-5)
    assert_close(away.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-4, atol=0)


def test_names_are_the_thousand_in_order():
    names = imagenet_names()
    assert len(names) == 1000
    assert (names[0], names[967], names[999]) == ("tench", "espresso", "toilet paper")


def write_photos(folder, count=4):
    (folder / "images").mkdir()
    captions = {}
    for index in range(count):
        image = Image.new("RGB", (40, 30), (60 * index, 90, 200 - 60 * index))
        image.paste((255, 255, 255), (index * 8, 5, index * 8 + 6, 25))
        image.save(folder / "images" / f"p{index}.jpg")
        captions[f"p{index}"] = [f"photo number {index}", f"a picture, {index}"][: 1 + index % 2]
    (folder / "captions_train.json").write_text(json.dumps(captions))
    return captions


def test_captions_and_views(tmp_path, tiny_backbone):
    write_photos(tmp_path)
    data = read_captions(tmp_path, "captions_train.json")
    assert data.owner.tolist() == [0, 1, 1, 2, 3, 3]
    assert data.captions[2] == "a picture, 1"
    views = photo_views(tiny_backbone, data.photos, 2)
    maps = tiny_backbone.deep(tiny_backbone.trunk(tiny_backbone.pixels([Image.open(path) for path in data.photos])))
    assert views.shape == (4, 10, maps.shape[1])  # the whole and four 2 × 2 parts of a 3 × 3 map, and mirrored
    assert_close(views[:, 0].float(), maps.mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    assert_close(views[:, 2].float(), maps[:, :, :2, 1:].mean(dim=(2, 3)), rtol=1e-3, atol=1e-3)
    assert data.group.tolist() == [0, 1, 2, 3]
    same = {"p0": ["a dog"], "p1": ["a cat", "a dog"], "p2": ["a dog", "outside"], "p3": ["left out"]}
    (tmp_path / "classes.json").write_text(json.dumps(same))
    assert read_captions(tmp_path, "classes.json", leave_out=("p3", "x")).group.tolist() == [0, 1, 0]


def test_the_command_writes_a_projection_that_loads(tmp_path, monkeypatch):
    classes = ImagenetClasses(*(part[:3] for part in imagenet_classes()))
    monkeypatch.setattr(lite_align, "imagenet_classes", lambda name: classes)
    monkeypatch.setattr(lite_align, "imagenet_names", lambda: imagenet_names()[:3])
    captions = write_photos(tmp_path)
    (tmp_path / "captions_val.json").write_text(json.dumps(dict(list(captions.items())[:3])))
    (tmp_path / "quick.yaml").write_text("epochs: 1\nbatch_size: 4\nnames_batch: 8\n")
    out = tmp_path / "mine.safetensors"
    args = [
        "lite-align",
        "--data-root",
        str(tmp_path),
        "--also",
        str(tmp_path),
        "--out",
        str(out),
        "--recipe",
        str(tmp_path / "quick.yaml"),
    ]
    result = CliRunner().invoke(app, [*args, "--json"], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert (report["photos"], report["captions"], report["recall_photos"]) == (8, 12, 3)
    assert 0 <= report["recall"]["text_to_image"]["R@1"] <= report["recall"]["text_to_image"]["R@10"] == 100
    head, (mean, _) = read_projection(out, classes)
    assert head.projection.weight.shape == (384, 1280)
    assert 0 < mean.norm() <= 1


def test_bad_input_is_named(tmp_path, tiny_backbone):
    with pytest.raises(DatasetError, match=r"captions_train\.json"):
        read_captions(tmp_path, "captions_train.json")
    captions = write_photos(tmp_path)
    for content, message in (
        ([], "expected photo names with their captions"),
        ({"p0": "one text"}, "'p0'"),
        ({"p0": []}, "'p0'"),
        ({**captions, "p9": ["gone"]}, r"p9\.jpg"),
    ):
        (tmp_path / "c.json").write_text(json.dumps(content))
        with pytest.raises(DatasetError, match=message):
            read_captions(tmp_path, "c.json")
    (tmp_path / "images" / "p1.jpg").write_bytes(b"")
    with pytest.raises(ImageError, match=r"p1\.jpg"):
        photo_views(tiny_backbone, read_captions(tmp_path, "captions_train.json").photos, 2)
    (tmp_path / "recipe.yaml").write_text("epoch: 3\n")
    with pytest.raises(RecipeError, match=r"'epoch'.*did you mean 'epochs'"):
        load_align_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(DatasetError, match=r"not 1$"):
        train_head(pairs(count=1), no_classes(), NO_FORMS, small_recipe())
