"""Outputs of the towers, compared with OpenAI's own code (recorded) and with a plain reference at other sizes."""

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from seeded import SMALL, SMALL_RESNET, SMALL_VIT, pixels, seeded_state, token_rows
from slow_reference import attention_pool, pool_regions, resnet_stages, transformer
from torch.testing import assert_close

from intclip.backbones import from_openai_state_dict, random_backbone, tokenize
from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import ClipBackbone, random_clip
from intclip.errors import CheckpointError, IntclipError

RECORDED = Path(__file__).parent / "recorded"
WIDE_RESNET = replace(SMALL_RESNET, vision_layers=(1, 2, 1, 3), vision_width=6, image_size=128, embed_dim=20)
DEEP_VIT = replace(SMALL_VIT, vision_layers=6, vision_width=64, patch_size=8, image_size=40, embed_dim=24)


@pytest.fixture(scope="module")
def recorded():
    return load_file(RECORDED / "openai_clip.safetensors")


def recorded_backbone(kind, split="paper"):
    shapes = json.loads((RECORDED / f"{kind}_keys.json").read_text())
    return from_openai_state_dict(seeded_state({key: tuple(shape) for key, shape in shapes.items()}), split=split)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_towers_give_what_openais_own_code_gives(kind, recorded):
    backbone = recorded_backbone(kind)
    assert backbone.architecture == SMALL[kind]
    assert_close(backbone.encode_image(pixels(SMALL[kind])), recorded[f"{kind}.image"], rtol=1e-5, atol=1e-5)
    assert_close(backbone.encode_text(token_rows(SMALL[kind])), recorded[f"{kind}.text"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("split", ["paper", "released"])
def test_resnet_stages_are_openais_layers(split, recorded):
    backbone = recorded_backbone("resnet", split)
    stages = backbone.stage_maps(pixels(SMALL_RESNET))
    assert_close(stages[1], recorded["resnet.layer2"], rtol=1e-5, atol=1e-5)
    assert_close(stages[3], recorded["resnet.layer4"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", [SMALL_RESNET, WIDE_RESNET])
def test_resnet_against_a_plain_reference(architecture):
    backbone = random_clip(architecture, seed=3)
    state = openai_state_dict(backbone)
    x = pixels(architecture)
    stages = resnet_stages(state, x)
    for ours, plain in zip(backbone.stage_maps(x), stages, strict=True):
        assert_close(ours, plain, rtol=1e-4, atol=1e-4)
    assert_close(backbone.encode_image(x), attention_pool(state, stages[-1])[:, 0], rtol=1e-4, atol=1e-4)
    assert_close(backbone.feature_map(x), pool_regions(state, stages[-1]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["RN50", "RN50x4"])
def test_attention_pool_is_torchs_attention_with_one_query(name):
    known = ARCHITECTURES[name]
    backbone = random_clip(replace(known, vision_layers=(1, 1, 1, 1), text_layers=1, vocab_size=8), seed=1)
    deep = torch.randn(2, known.vision_width * 32, known.grid, known.grid, generator=torch.Generator().manual_seed(0))
    every_query = attention_pool(openai_state_dict(backbone), deep)
    assert_close(backbone.head.pooled(deep), every_query[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "activation"), [(SMALL_VIT, "gelu"), (DEEP_VIT, "quick_gelu")])
def test_vit_against_a_plain_reference(architecture, activation):
    backbone = random_clip(replace(architecture, activation=activation), seed=5)
    state = openai_state_dict(backbone)
    x = pixels(architecture)
    patches = F.conv2d(x, state["visual.conv1.weight"], stride=architecture.patch_size).flatten(2).transpose(1, 2)
    tokens = torch.cat([state["visual.class_embedding"].expand(len(x), 1, -1), patches], dim=1)
    width = tokens.shape[-1:]
    tokens = tokens + state["visual.positional_embedding"]
    tokens = F.layer_norm(tokens, width, state["visual.ln_pre.weight"], state["visual.ln_pre.bias"])
    prefix = "visual.transformer.resblocks"
    blocks = transformer(state, prefix, tokens, causal=False, quick=activation == "quick_gelu")
    last = F.layer_norm(blocks[-1], width, state["visual.ln_post.weight"], state["visual.ln_post.bias"])
    joint = last @ state["visual.proj"]
    assert_close(backbone.encode_image(x), joint[:, 0], rtol=1e-4, atol=1e-4)
    side = architecture.grid
    regions = joint[:, 1:].transpose(1, 2).reshape(len(x), -1, side, side)
    assert_close(backbone.feature_map(x), regions, rtol=1e-4, atol=1e-4)
    ends = [-(-len(blocks) * quarter // 4) - 1 for quarter in (1, 2, 3, 4)]
    for ours, end in zip(backbone.stage_maps(x), ends, strict=True):
        assert_close(ours.flatten(2).transpose(1, 2), blocks[end][:, 1:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", [SMALL_RESNET, SMALL_VIT, replace(SMALL_VIT, vision_layers=2)])
@pytest.mark.parametrize("split", ["paper", "released"])
def test_the_parts_make_the_whole(architecture, split):
    backbone = random_clip(architecture, seed=2, split=split)
    x = pixels(architecture)
    deep = backbone.deep(backbone.trunk(x))
    assert torch.equal(backbone.head.pooled(deep), backbone.encode_image(x))
    assert torch.equal(backbone.head.regions(deep), backbone.feature_map(x))
    assert backbone.feature_map(x).shape == (2, architecture.embed_dim, *backbone.grid)
    stages = backbone.stage_maps(x)
    assert len(stages) == 4
    assert all(a.shape[-1] >= b.shape[-1] for a, b in pairwise(stages))


def test_splits_cut_where_the_paper_and_the_released_code_cut():
    def names(split, architecture=SMALL_RESNET):
        backbone = random_clip(architecture, split=split)
        return [[name for name, _ in part.named_children()] for part in (backbone.trunk, backbone.deep)]

    assert names("paper") == [["stem", "layer1", "layer2", "layer3"], ["layer4"]]
    assert names("released") == [["stem", "layer1", "layer2"], ["layer3", "layer4"]]
    twelve = replace(SMALL_VIT, vision_layers=12)
    trunk, deep = names("paper", twelve)
    assert trunk == ["embedding", *(f"block{i}" for i in range(9))]
    assert deep == ["block9", "block10", "block11"]
    assert names("released", twelve) == [trunk, deep]
    assert len(names("paper", replace(SMALL_VIT, vision_layers=24))[1]) == 6


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("RN50", 102.01),
        ("RN101", 119.69),
        ("RN50x4", 178.30),
        ("RN50x16", 290.98),
        ("RN50x64", 623.26),
        ("ViT-B/32", 151.28),
        ("ViT-B/16", 149.62),
        ("ViT-L/14", 427.62),
        ("ViT-L/14@336px", 427.94),
    ],
)
def test_sizes_are_the_published_ones(name, millions):
    """Parameters as in open_clip's table of models."""
    with torch.device("meta"):
        backbone = ClipBackbone(ARCHITECTURES[name])
    assert backbone.name == name
    assert round(parameters(backbone) / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "split", "deep"),
    [
        ("RN101", "paper", 14_964_736),  # 15,751,809 learnable less aggregation (328,321) and prompts (458,752)
        ("RN101", "released", 41_055_232),  # the released code's 41.84 M, likewise
        ("ViT-B/32", "paper", 3 * (12 * 768**2 + 13 * 768)),  # per block: 12 W² weights and 13 W biases and gains
        ("ViT-L/14", "paper", 6 * (12 * 1024**2 + 13 * 1024)),
    ],
)
def test_deep_layers_are_as_large_as_intclips(name, split, deep):
    with torch.device("meta"):
        assert parameters(ClipBackbone(ARCHITECTURES[name], split).deep) == deep


@pytest.mark.parametrize("architecture", [SMALL_RESNET, SMALL_VIT])
def test_features_run_each_part_once_and_without_gradient(architecture):
    backbone = random_clip(architecture)
    counts = {"first": 0, "last": 0}
    first, last = next(iter(backbone.trunk.children())), list(backbone.deep.children())[-1]
    first.register_forward_hook(lambda *_: counts.update(first=counts["first"] + 1))
    last.register_forward_hook(lambda *_: counts.update(last=counts["last"] + 1))
    x = pixels(architecture).requires_grad_(True)
    whole = backbone.features(x, ("trunk", "regions", "pooled", "stages", "pixels"))
    assert counts == {"first": 1, "last": 1}
    assert sorted(whole) == ["pixels", "pooled", "regions", "stage1", "stage2", "stage3", "stage4", "trunk"]
    for names in (("trunk",), ("regions",), ("pooled", "trunk"), ("stages",)):
        for key, value in backbone.features(x, names).items():
            assert torch.equal(value, whole[key])
            assert not value.requires_grad
    counts.update(first=0, last=0)
    backbone.features(x, ("trunk",))
    assert counts == {"first": 1, "last": 0}


def test_a_trainable_copy_of_the_deep_layers_learns_and_the_frozen_one_stays():
    for architecture in (SMALL_RESNET, SMALL_VIT):
        backbone = random_clip(architecture)
        trunk = backbone.features(pixels(architecture), ("trunk",))["trunk"]
        before = trunk.clone()
        semantic = copy.deepcopy(backbone.deep).requires_grad_(True)
        backbone.head.regions(semantic(trunk)).square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in semantic.parameters())
        assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
        assert torch.equal(trunk, before), "the deep layers must not write into the trunk's features"


def test_training_mode_does_not_move_statistics():
    backbone = random_clip(SMALL_RESNET)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone.train()
    backbone.encode_image(pixels(SMALL_RESNET))
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())


def test_random_weights_depend_on_the_seed_alone():
    first, again, other = (random_clip(SMALL_VIT, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.proj, other.head.proj)
    state = torch.get_rng_state()
    random_clip(SMALL_VIT)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_backbone_knows_the_names():
    with pytest.raises(CheckpointError, match=r"'RN18'.*RN50, RN101"):
        random_backbone("RN18")


def test_heads_must_divide_the_width():
    with pytest.raises(CheckpointError, match=r"32.*\b0 heads"):
        random_clip(replace(SMALL_VIT, vision_width=32))
    with pytest.raises(CheckpointError, match="attention pool of width 96"):
        random_clip(replace(SMALL_RESNET, vision_width=3))


class TestText:
    """The text tower as `TextTower`."""

    architecture = replace(SMALL_VIT, vocab_size=49408, context_length=77)

    @pytest.fixture(scope="class")
    def text(self):
        return random_clip(self.architecture, seed=4).text

    def test_against_a_plain_reference(self, text):
        backbone = random_clip(SMALL_VIT, seed=6)
        state = openai_state_dict(backbone)
        tokens = token_rows(SMALL_VIT)
        x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
        x = transformer(state, "transformer.resblocks", x, causal=True, quick=True)[-1]
        x = F.layer_norm(x, x.shape[-1:], state["ln_final.weight"], state["ln_final.bias"])
        plain = x[torch.arange(3), [3, 8, 15]] @ state["text_projection"]
        assert_close(backbone.encode_text(tokens), plain, rtol=1e-4, atol=1e-4)

    def test_padding_does_not_change_a_feature(self, text):
        texts = ["a photo of a cat", "!", "To feel the joy of being in love, sharing a tender moment with family"]
        short, padded = text.tokenize(texts), tokenize(texts)
        assert padded.shape == (3, 77)
        assert short.shape[1] == text.lengths(short).max() == text.lengths(padded).max() < 77
        assert torch.equal(text.lengths(short), text.lengths(padded))
        assert torch.equal(padded[:, : short.shape[1]], short)
        double = copy.deepcopy(text).double()  # so that tolerances need not allow for rounding
        assert_close(double(short), double(padded), rtol=1e-10, atol=1e-12)
        for row, alone in zip(double(short), texts, strict=True):
            assert_close(row, double(double.tokenize([alone]))[0], rtol=1e-10, atol=1e-12)

    def test_gradient_reaches_prompts_up_to_the_end_and_nothing_behind_it(self, text):
        tokens = text.tokenize(["a photo of a cat", "joy"])
        embeddings = text.embed(tokens).detach().requires_grad_(True)
        lengths = text.lengths(tokens)
        features = text.encode_embeddings(embeddings, lengths)
        assert torch.equal(features, text(tokens))
        features.square().sum().backward()
        norms = embeddings.grad.norm(dim=-1)
        assert (norms[0] > 0).all()
        assert (norms[1, : lengths[1]] > 0).all()
        assert (norms[1, lengths[1] :] == 0).all()
        assert all(p.grad is None for p in text.parameters())

    def test_gradient_of_a_prompt_is_the_slope(self, text):
        double = copy.deepcopy(text).double()
        tokens = text.tokenize(["a cat"])
        embeddings = double.embed(tokens).detach()[:, :3].requires_grad_(True)
        lengths = torch.tensor([3])
        weights = torch.linspace(-1, 1, double.embed_dim, dtype=torch.float64)
        assert torch.autograd.gradcheck(
            lambda e: (double.encode_embeddings(e, lengths) * weights).sum(), (embeddings,), fast_mode=True
        )

    def test_too_long_is_refused_and_can_be_cut(self, text):
        with pytest.raises(IntclipError, match=r"'word word .*…'.*102.*77"):
            text.tokenize(["word " * 100])
        cut = text.tokenize(["word " * 100, "a cat"], truncate=True)
        assert cut.shape == (2, 77)
        assert cut[0, -1] == 49407
        assert text.lengths(cut).tolist() == [77, 4]
        with pytest.raises(IntclipError, match=r"78.*77"):
            text.encode_embeddings(torch.zeros(1, 78, text.width), torch.tensor([78]))
