"""Region features from the last block's values (MaskCLIP) and from its own attention (ClearCLIP)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from seeded import SMALL_RESNET, SMALL_VIT, pixels
from torch.testing import assert_close

from families import FAMILIES
from intclip.backbones import load_backbone
from intclip.backbones.checkpoints import build_clip, openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.data.feature_cache import weights_hash
from intclip.errors import CheckpointError

KINDS = ("values", "clear")
CLASS_TOKEN = ["CLIP ViT", "MetaCLIP 2", "EVA-02-CLIP", "MobileCLIP 2 B", "TIPS v2"]


def both(sizes, kind):
    """Return the same weights with the default regions and with others."""
    usual = random_clip(sizes, seed=2)
    return usual, build_clip(replace(sizes, regions=kind), openai_state_dict(usual))


def plain_regions(backbone, x, kind):
    """Token by token and head by head, from the tokens before the last block."""
    *earlier, last = backbone.deep
    tokens = backbone.trunk(x)
    for block in earlier:
        tokens = block(tokens)
    attention, heads = last.attn, last.attn.heads
    seen = last.ln_1(tokens)
    query, _, value = F.linear(seen, attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
    photos = []
    for queries, values in zip(query, value, strict=True):
        rows = []
        for place in range(1, len(queries)):
            parts = []
            for q, v in zip(queries.chunk(heads, dim=-1), values.chunk(heads, dim=-1), strict=True):
                weights = (
                    (q[place] @ q.T / q.shape[1] ** 0.5).softmax(0) if kind == "clear" else torch.eye(len(q))[place]
                )
                parts.append(weights @ v)
            rows.append(backbone.head.ln_post(attention.out_proj(torch.cat(parts))) @ backbone.head.proj)
        photos.append(torch.stack(rows))
    return torch.stack(photos)


@pytest.mark.parametrize("kind", KINDS)
def test_regions_are_those_of_the_plain_reference_and_the_embedding_stays(kind):
    usual, other = both(SMALL_VIT, kind)
    x = pixels(SMALL_VIT)
    found = other.feature_map(x).flatten(2).transpose(1, 2)
    assert_close(found, plain_regions(usual, x, kind), rtol=1e-4, atol=1e-5)
    assert_close(other.encode_image(x), usual.encode_image(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(other.feature_map(x), usual.feature_map(x), atol=0.1)


def test_queries_that_are_all_equal_read_the_mean_of_the_values():
    _, clear = both(SMALL_VIT, "clear")
    with torch.no_grad():
        clear.deep[-1].attn.in_proj_weight[: SMALL_VIT.vision_width] = 0
    found = clear.feature_map(pixels(SMALL_VIT)).flatten(2)
    assert_close(found, found.mean(dim=2, keepdim=True).expand_as(found), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", CLASS_TOKEN)
def test_every_family_with_a_class_token_has_them(family, kind):
    usual, other = both(FAMILIES[family]().architecture, kind)
    x = pixels(usual.architecture)
    assert_close(other.encode_image(x), usual.encode_image(x), rtol=1e-5, atol=1e-5)
    assert other.feature_map(x).shape == usual.feature_map(x).shape
    flow = other.deep[-1].flow(other.trunk(x))
    assert_close(flow.sum(dim=-1), torch.ones(flow.shape[:2]), rtol=1e-5, atol=1e-5)
    assert usual.identity() != other.identity()
    assert weights_hash(usual) != weights_hash(other)


@pytest.mark.parametrize("family", ["SigLIP", "Perception Encoder", "CLIP ResNet", "MobileCLIP 2 S"])
def test_towers_of_another_kind_refuse_them(family):
    with pytest.raises(CheckpointError, match="regions='values'"):
        random_clip(replace(FAMILIES[family]().architecture, regions="values"))


def test_what_load_backbone_refuses():
    with pytest.raises(CheckpointError, match=r"'maskclip'.*tokens, values, clear"):
        load_backbone("ViT-B/32", regions="maskclip")
    with pytest.raises(CheckpointError, match=r"^lite .*regions"):
        load_backbone("lite", regions="values")


def test_the_usual_regions_leave_the_identity_as_it_was():
    assert "regions" not in random_clip(SMALL_VIT).design()
    assert "regions" not in random_clip(SMALL_RESNET).design()
