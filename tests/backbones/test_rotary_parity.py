"""EVA-02-CLIP and Perception Encoder against a plain reference, in open_clip's layout and Meta's."""

import json

import pytest
import torch
from plain_rotary import eva02, perception
from safetensors.torch import save_file
from seeded import SMALL_VIT, values, weights
from torch.testing import assert_close

from intclip.backbones import from_openai_state_dict, load_backbone
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.backbones.transformer import rotate
from intclip.errors import CheckpointError

WIDTH, DEPTH, GRID, PATCH, DIM = 128, 3, 3, 16, 24
HEADS = 2


def block(prefix, shapes):
    return {f"{prefix}.{name}": shape for name, shape in shapes.items()}


def linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def layer_norm(name, width=WIDTH):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva_shapes(hidden=80):
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "patch_embed.proj.bias": (WIDTH,),
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, GRID**2 + 1, WIDTH), **layer_norm("norm"),
        **linear("head", DIM, WIDTH),
    }  # fmt: skip
    for index in range(DEPTH):
        at = f"blocks.{index}"
        shapes |= layer_norm(f"{at}.norm1") | layer_norm(f"{at}.norm2") | layer_norm(f"{at}.attn.norm")
        shapes |= linear(f"{at}.attn.q_proj", WIDTH, WIDTH) | linear(f"{at}.attn.k_proj", WIDTH, WIDTH, bias=False)
        shapes |= linear(f"{at}.attn.v_proj", WIDTH, WIDTH) | linear(f"{at}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"{at}.mlp.fc1_g", hidden, WIDTH) | linear(f"{at}.mlp.fc1_x", hidden, WIDTH)
        shapes |= layer_norm(f"{at}.mlp.norm", hidden) | linear(f"{at}.mlp.fc2", WIDTH, hidden)
    return shapes


def pe_shapes():
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH), "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, GRID**2 + 1, WIDTH), **layer_norm("norm_pre"), **layer_norm("norm"),
        "attn_pool.latent": (1, 1, WIDTH), **linear("attn_pool.q", WIDTH, WIDTH),
        **linear("attn_pool.kv", 2 * WIDTH, WIDTH), **linear("attn_pool.proj", WIDTH, WIDTH),
        **layer_norm("attn_pool.norm"), **linear("attn_pool.mlp.fc1", 4 * WIDTH, WIDTH),
        **linear("attn_pool.mlp.fc2", WIDTH, 4 * WIDTH), **linear("head", DIM, WIDTH, bias=False),
    }  # fmt: skip
    for index in range(DEPTH):
        at = f"blocks.{index}"
        shapes |= layer_norm(f"{at}.norm1") | layer_norm(f"{at}.norm2")
        shapes |= linear(f"{at}.attn.qkv", 3 * WIDTH, WIDTH) | linear(f"{at}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"{at}.mlp.fc1", 4 * WIDTH, WIDTH) | linear(f"{at}.mlp.fc2", WIDTH, 4 * WIDTH)
    return shapes


def towers(family):
    """An image tower in timm's keys, and a whole state dict in open_clip's around it."""
    visual = {key: weights(key, shape) for key, shape in {"eva02": eva_shapes, "pe": pe_shapes}[family]().items()}
    text = openai_state_dict(random_clip(SMALL_VIT, seed=4))
    whole = {f"text.{key}": value for key, value in text.items() if not key.startswith(("visual.", "logit"))}
    whole["text.text_projection"] = values("projection", (SMALL_VIT.text_width, DIM))
    whole |= {f"visual.trunk.{key}": value for key, value in visual.items()} | {"logit_scale": torch.tensor(2.0)}
    return visual, whole


@pytest.mark.parametrize(("family", "plain"), [("eva02", eva02), ("pe", perception)])
def test_towers_are_those_of_the_plain_reference(family, plain):
    visual, whole = towers(family)
    if family == "pe":
        visual["head.bias"] = whole["visual.trunk.head.bias"] = torch.zeros(DIM)  # as timm writes it
    backbone = from_openai_state_dict(whole, text_heads=1)
    assert backbone.architecture.family == family
    x = values("photo", (2, 3, GRID * PATCH, GRID * PATCH))
    for photo, embedding, regions in zip(
        x, backbone.encode_image(x), backbone.feature_map(x).flatten(2).transpose(1, 2), strict=True
    ):
        expected = plain(visual, photo, HEADS)
        assert_close(embedding, expected[0], rtol=1e-4, atol=1e-4)
        assert_close(regions, expected[1], rtol=1e-4, atol=1e-4)


def test_metas_own_layout_gives_the_same_perception_encoder():
    visual, whole = towers("pe")
    names = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm1": "ln_1", "norm2": "ln_2",
        "blocks": "transformer.resblocks",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    meta = {key.removeprefix("text."): value for key, value in whole.items() if not key.startswith("visual.")}
    for key, value in visual.items():
        if key.startswith(("attn_pool.q.", "attn_pool.kv.")):
            continue
        name = key
        for timm, theirs in names.items():
            name = name.replace(timm, theirs)
        name = name.replace("attn_pool.proj", "attn_pool.attn.out_proj").replace(
            "attn_pool.norm", "attn_pool.layernorm"
        )
        name = name.replace("attn_pool.latent", "attn_pool.probe")
        name = "ln_post" + name.removeprefix("norm") if name.startswith("norm.") else name
        special = {
            "cls_token": ("class_embedding", value.flatten()),
            "head.weight": ("proj", value.t() if value.ndim == 2 else value),
        }
        special["pos_embed"] = ("positional_embedding", value[0])
        name, value = special.get(key, (name, value))
        meta[f"visual.{name}"] = value
    for part in ("weight", "bias"):
        joined = torch.cat([visual[f"attn_pool.q.{part}"], visual[f"attn_pool.kv.{part}"]])
        meta[f"visual.attn_pool.attn.in_proj_{part}"] = joined
    x = values("photo", (2, 3, GRID * PATCH, GRID * PATCH))
    ours, theirs = (from_openai_state_dict(state, text_heads=1) for state in (whole, meta))
    assert torch.equal(ours.encode_image(x), theirs.encode_image(x))


@pytest.mark.parametrize(
    ("family", "name", "model"),
    [("eva02", "EVA02-B/16", "eva02_base_patch16_clip_224"), ("pe", "PE-B/16", "vit_pe_core_base_patch16_224")],
)
def test_a_folder_of_open_clip(tmp_path, family, name, model):
    visual, whole = towers(family)
    save_file({key: value.contiguous() for key, value in whole.items()}, tmp_path / "open_clip_model.safetensors")
    pool = "token" if family == "eva02" else "map"
    config = {
        "model_cfg": {
            "embed_dim": DIM, "custom_text": True,
            "vision_cfg": {"image_size": 48, "timm_model_name": model, "timm_model_pretrained": False,
                           "timm_pool": pool, "timm_proj": None},
            "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 1, "layers": 3},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    backbone = load_backbone(name, checkpoint=tmp_path)
    assert backbone.architecture.text_activation is None
    assert backbone.architecture.activation == "gelu"
    assert backbone.preprocess.crop == "squash"
    assert backbone.preprocess.interpolation == "bilinear"
    x = values("photo", (1, 3, 48, 48))
    plain = {"eva02": eva02, "pe": perception}[family]
    assert_close(backbone.encode_image(x)[0], plain(visual, x[0], HEADS)[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="not SigLIP-B/16"):
        load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    config["model_cfg"]["vision_cfg"]["timm_pool"] = "avg"
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="timm_pool"):
        load_backbone(name, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["visual.trunk.stem.0.conv.weight"], "MobileCLIP"),
        (["image_encoder.model.patch_emb.0.weight"], "MobileCLIP"),
        (["visual.trunk.blocks.0.attn.q_bias"], "EVA-01"),
        (["visual.blocks.0.attn.q_bias"], "EVA-CLIP"),
        (["text_decoder.ln_final.weight", "visual.conv1.weight"], "CoCa"),
    ],
)
def test_families_that_are_not_supported_are_named(keys, family):
    with pytest.raises(CheckpointError, match=family):
        from_openai_state_dict({key: torch.zeros(2) for key in keys})


def test_turning_keeps_lengths_and_depends_on_distance_alone():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 8, generator=generator, dtype=torch.float64) for _ in range(2))

    def table(place):
        angles = (place * torch.tensor([1.0, 0.3, 0.7, 0.1], dtype=torch.float64)).repeat_interleave(2)[None]
        return torch.stack([angles.cos(), angles.sin()])

    assert_close(rotate(query, table(5)).norm(), query.norm())
    near = rotate(query, table(2)) @ rotate(key, table(4)).T
    assert_close(rotate(query, table(7)) @ rotate(key, table(9)).T, near)
