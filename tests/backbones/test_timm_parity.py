"""EVA-02-CLIP, Perception Encoder and MobileCLIP 2 against timm's and open_clip's own code (recorded).

See `record_timm.py`. The weights are from `seeded`; only key names, shapes and results are recorded.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from seeded import SMALL_VIT, seeded_state, token_rows, values
from torch.testing import assert_close

from intclip.backbones import from_openai_state_dict, load_backbone
from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.clip import random_clip
from intclip.backbones.fastvit import LinearHead
from intclip.backbones.transformer import rotate
from intclip.errors import CheckpointError

RECORDED = Path(__file__).parent / "recorded"
KEYS = json.loads((RECORDED / "timm_keys.json").read_text())
RESULTS = load_file(RECORDED / "timm.safetensors")
DIM = 24
SIDES = {"mobileclip": 96, "mobileclip_fused": 96}
FOLDERS = [
    ("eva02", "EVA02-B/16", "eva02_base_patch16_clip_224", "token"),
    ("pe", "PE-B/16", "vit_pe_core_base_patch16_224", "map"),
    ("mobileclip", "MobileCLIP2-S0", "fastvit_mci0", "avg"),
    ("mobileclip_vit", "MobileCLIP2-B", "vit_base_mci_224", "token"),
]


def state_of(family):
    """A whole state dict in open_clip's layout."""
    state = seeded_state({key: tuple(shape) for key, shape in KEYS[family].items()})
    if family == "pe":
        state["visual.trunk.head.bias"].zero_()  # as timm writes it
    return state | {"logit_scale": torch.tensor(2.0)}


def photos(family):
    side = SIDES.get(family, 48)
    return values("photo", (2, 3, side, side))


@pytest.mark.parametrize("family", KEYS)
def test_towers_give_what_timm_s_and_open_clip_s_code_gives(family):
    backbone = from_openai_state_dict(state_of(family), text_heads=1)
    assert backbone.architecture.family == family.removesuffix("_fused")
    x = photos(family)
    assert_close(backbone.encode_image(x), RESULTS[f"{family}.image"], rtol=1e-4, atol=1e-4)
    regions = backbone.feature_map(x).flatten(2).transpose(1, 2)
    assert_close(regions, RESULTS[f"{family}.regions"], rtol=1e-4, atol=1e-4)
    tokens = token_rows(SMALL_VIT)
    assert_close(backbone.encode_text(tokens), RESULTS[f"{family}.text"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["mobileclip", "mobileclip_vit"])
def test_no_tensor_of_a_branch_or_norm_may_be_missing(family):
    whole = state_of(family)
    for key in [key for key in whole if key.startswith("visual.trunk.")]:
        with pytest.raises(CheckpointError, match="missing"):
            from_openai_state_dict({name: value for name, value in whole.items() if name != key}, text_heads=1)


def test_the_mean_of_fastvit_s_regions_is_its_embedding():
    backbone = random_clip(replace(ARCHITECTURES["MobileCLIP2-S0"], vision_layers=(1, 1, 1, 1), vision_width=16))
    x = values("photo", (2, 3, 256, 256))
    assert backbone.feature_map(x).shape == (2, 512, 8, 8)
    assert_close(backbone.feature_map(x).mean(dim=(2, 3)), backbone.encode_image(x), rtol=1e-5, atol=1e-5)
    head = LinearHead(4, 3)
    assert_close(
        head.regions(x[:, :1].expand(2, 4, -1, -1)).mean(dim=(2, 3)), head.pooled(x[:, :1].expand(2, 4, -1, -1))
    )


@pytest.mark.parametrize(("split", "stages"), [("paper", "layer4"), ("released", "layer3 layer4")])
def test_fastvit_s_deep_layers(split, stages):
    sizes = replace(ARCHITECTURES["MobileCLIP2-S0"], vision_layers=(1, 1, 1, 1), vision_width=16)
    backbone = random_clip(sizes, split=split)
    assert [name for name, _ in backbone.deep.named_children()] == [*stages.split(), "final"]
    trunk, deep, maps = backbone.run_stages(values("photo", (1, 3, 64, 64)))
    assert [tuple(found.shape[1:]) for found in maps] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (256, 2, 2)]
    assert torch.equal(backbone.deep(trunk), deep)
    assert torch.equal(maps[-1], deep)


def test_prompts_of_the_open_text_tower_do_not_depend_on_what_they_stand_with():
    """Padding is part of the model: other rows, and anything after a row's end, have no effect."""
    text = from_openai_state_dict(state_of("mobileclip"), text_heads=1).text
    tokens = token_rows(SMALL_VIT)
    lengths = text.lengths(tokens)
    whole = text.encode_embeddings(text.embed(tokens), lengths)
    short = text.encode_embeddings(text.embed(tokens[:1, : int(lengths[0])]), lengths[:1])
    assert_close(short[0], whole[0], rtol=1e-5, atol=1e-5)
    noise = text.embed(tokens) + 1e3 * (torch.arange(tokens.shape[1]) >= lengths[:, None]).unsqueeze(-1)
    assert_close(text.encode_embeddings(noise, lengths), whole, rtol=1e-5, atol=1e-5)


def test_metas_own_layout_gives_the_same_perception_encoder():
    whole = state_of("pe")
    names = {
        "patch_embed.proj": "conv1", "norm_pre": "ln_pre", "norm1": "ln_1", "norm2": "ln_2",
        "blocks": "transformer.resblocks",
        "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "attn_pool.proj": "attn_pool.attn.out_proj", "attn_pool.norm": "attn_pool.layernorm",
        "attn_pool.latent": "attn_pool.probe",
    }  # fmt: skip
    trunk = "visual.trunk."
    visual = {key.removeprefix(trunk): value for key, value in whole.items() if key.startswith(trunk)}
    meta = {key.removeprefix("text."): value for key, value in whole.items() if not key.startswith("visual.")}
    for key, value in visual.items():
        if key.startswith(("attn_pool.q.", "attn_pool.kv.", "head.bias")):
            continue
        name = key
        for timm, theirs in names.items():
            name = name.replace(timm, theirs)
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
    ours, theirs = (from_openai_state_dict(state, text_heads=1) for state in (whole, meta))
    assert torch.equal(ours.encode_image(photos("pe")), theirs.encode_image(photos("pe")))


@pytest.mark.parametrize(("family", "name", "model", "pool"), FOLDERS)
def test_a_folder_of_open_clip(tmp_path, family, name, model, pool):
    save_file(
        {key: value.contiguous() for key, value in state_of(family).items()}, tmp_path / "open_clip_model.safetensors"
    )
    open_text = family == "mobileclip"
    config = {
        "model_cfg": {
            "embed_dim": DIM, "custom_text": True,
            "vision_cfg": {"image_size": SIDES.get(family, 48), "timm_model_name": model,
                           "timm_model_pretrained": False, "timm_pool": pool, "timm_proj": None},
            "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 1, "layers": 3,
                         "no_causal_mask": open_text},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"},
    }  # fmt: skip
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    backbone = load_backbone(name, checkpoint=tmp_path)
    assert backbone.architecture.text_activation is None
    assert backbone.architecture.activation == "gelu"
    assert backbone.preprocess.crop == "squash"
    assert backbone.preprocess.interpolation == "bilinear"
    assert backbone.image_size == SIDES.get(family, 48)
    assert_close(backbone.encode_image(photos(family)), RESULTS[f"{family}.image"], rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="not SigLIP-B/16"):
        load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    for section, key, value in (("text_cfg", "no_causal_mask", not open_text), ("vision_cfg", "timm_pool", "max")):
        wrong = json.loads(json.dumps(config))
        wrong["model_cfg"][section][key] = value
        (tmp_path / "open_clip_config.json").write_text(json.dumps(wrong))
        with pytest.raises(CheckpointError, match=key):
            load_backbone(name, checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (["visual.trunk.stages.4.blocks.0.norm.weight"], "MobileCLIP 2 S3"),
        (["image_encoder.model.patch_emb.0.weight"], "OpenCLIP"),
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
