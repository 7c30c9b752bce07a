"""MetaCLIP 2 and TIPS v2 against `transformers` with random weights, from the folders that it writes."""

import json

import pytest
import torch
from hf_models import randomised
from seeded import values
from torch.testing import assert_close
from transformers import MetaClip2Config, MetaClip2Model, Tipsv2Config, Tipsv2Model

from intclip.backbones import from_openai_state_dict, load_backbone
from intclip.errors import CheckpointError

BLOCKS = {"num_attention_heads": 3, "num_hidden_layers": 5, "hidden_size": 96}
END = 2


def metaclip2(folder, vision=None, text=None, projection=40):
    text = {"eos_token_id": END, "bos_token_id": 0, "pad_token_id": 1} | (text or {})
    config = MetaClip2Config(vision_config=vision or {}, text_config=text, projection_dim=projection)
    model = randomised(MetaClip2Model(config))
    model.save_pretrained(folder)
    return model


SMALL = {"intermediate_size": 200, "image_size": 64, "patch_size": 16} | BLOCKS
SMALL_TEXT = {"intermediate_size": 160, "vocab_size": 60_000, "max_position_embeddings": 20} | BLOCKS


def end_rows(vocabulary, context):
    """Three rows of different lengths, the end token in them once; higher ids stand before it."""
    rows = torch.ones(3, context, dtype=torch.int64)
    for row, length in zip(rows, (3, context // 2, context), strict=True):
        row[:length] = (values(f"ids{length}", (length,)).abs() * 1e5).long() % (vocabulary - 3) + 3
        row[0], row[length - 1] = 0, END
    return rows


@torch.no_grad()
def compare_metaclip2(model, backbone):
    vision, text = model.config.vision_config, model.config.text_config
    x = values("photo", (2, 3, vision.image_size, vision.image_size))
    tokens = end_rows(text.vocab_size, text.max_position_embeddings)
    hidden = model.vision_model(pixel_values=x).last_hidden_state
    patches = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 1:]))
    assert_close(backbone.encode_image(x), model.get_image_features(pixel_values=x).pooler_output, rtol=1e-4, atol=1e-4)
    assert_close(backbone.feature_map(x).flatten(2).transpose(1, 2), patches, rtol=1e-4, atol=1e-4)
    assert_close(
        backbone.encode_text(tokens), model.get_text_features(input_ids=tokens).pooler_output, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_small_metaclip2(tmp_path, act):
    model = metaclip2(tmp_path, SMALL | {"hidden_act": act}, SMALL_TEXT | {"hidden_act": act})
    backbone = load_backbone("MetaCLIP2-H/14", checkpoint=tmp_path)
    assert backbone.architecture.family == "metaclip2"
    compare_metaclip2(model, backbone)
    compare_metaclip2(model, load_backbone("CLIP", checkpoint=tmp_path))


def test_metaclip2_without_its_configuration_is_refused(tmp_path):
    model = metaclip2(tmp_path, SMALL, SMALL_TEXT)
    with pytest.raises(CheckpointError, match="60,000 tokens"):
        from_openai_state_dict(model.state_dict())
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match="60,000 tokens"):
        load_backbone("CLIP", checkpoint=tmp_path)


@torch.no_grad()
def compare_tips(model, backbone):
    vision, text = model.config.vision_config, model.config.text_config
    x = values("photo", (2, 3, vision.image_size, vision.image_size))
    hidden = model.vision_model(pixel_values=x).last_hidden_state  # behind the last norm
    assert_close(backbone.encode_image(x), hidden[:, 0], rtol=1e-4, atol=1e-4)
    patches = hidden[:, 1 + vision.num_register_tokens :]
    assert_close(backbone.feature_map(x).flatten(2).transpose(1, 2), patches, rtol=1e-4, atol=1e-4)
    tokens = torch.zeros(3, text.max_position_embeddings, dtype=torch.int64)
    lengths = (1, 9, text.max_position_embeddings)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = (values(f"ids{length}", (length,)).abs() * 1e4).long() % (text.vocab_size - 1) + 1
    expected = model.get_text_features(input_ids=tokens, attention_mask=(tokens != 0).long()).pooler_output
    assert_close(backbone.encode_text(tokens), expected, rtol=1e-4, atol=1e-4)
    assert_close(backbone.encode_text(tokens[:2, :9]), expected[:2], rtol=1e-4, atol=1e-4)
    assert_close(backbone.logit_scale.exp(), 1 / model.temperature.detach(), rtol=1e-5, atol=1e-5)


def tips(folder, vision, text):
    model = Tipsv2Model(Tipsv2Config(vision_config=vision, text_config=text))
    temperature = model.temperature.item()
    model = randomised(model)
    with torch.no_grad():
        model.temperature.fill_(temperature)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("registers", [1, 3])
def test_small_tips(tmp_path, registers):
    vision = BLOCKS | {"image_size": 56, "patch_size": 14, "num_register_tokens": registers, "mlp_ratio": 3}
    text = BLOCKS | {"intermediate_size": 160, "vocab_size": 90, "max_position_embeddings": 24}
    model = tips(tmp_path, vision, text)
    backbone = load_backbone("TIPSv2-B/14", checkpoint=tmp_path)
    assert backbone.grid == (4, 4)
    assert backbone.text.context_length == 24
    look = backbone.preprocess
    assert (look.mean, look.std, look.crop, look.interpolation) == ((0.0,) * 3, (1.0,) * 3, "squash", "bilinear")
    compare_tips(model, backbone)


def test_tips_at_its_real_size(tmp_path):
    model = tips(tmp_path, {"image_size": 112}, {})
    compare_tips(model, load_backbone("TIPSv2-B/14", checkpoint=tmp_path))


def test_published_tips_weights_have_no_temperature(tmp_path):
    tips(tmp_path, BLOCKS | {"image_size": 56}, BLOCKS | {"vocab_size": 90})
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "model.safetensors")
    del state["temperature"]
    save_file(state, tmp_path / "model.safetensors")
    assert load_backbone("TIPSv2-B/14", checkpoint=tmp_path).logit_scale.exp() == pytest.approx(197.4, rel=1e-3)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("vision_config", {"use_swiglu_ffn": True}),
        ("vision_config", {"qkv_bias": False}),
        ("text_config", {"scale_sqrt_depth": False}),
    ],
)
def test_variants_of_tips_are_refused(tmp_path, section, change):
    tips(tmp_path, BLOCKS | {"image_size": 56}, BLOCKS | {"vocab_size": 90})
    config = json.loads((tmp_path / "config.json").read_text())
    config[section] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=next(iter(change))):
        load_backbone("TIPSv2-B/14", checkpoint=tmp_path)
