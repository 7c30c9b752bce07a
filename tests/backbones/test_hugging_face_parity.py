"""ViT and text against `transformers.CLIPModel` with random weights, in Hugging Face's and in OpenAI's layout."""

import pytest
import torch
from seeded import values
from torch.testing import assert_close
from transformers import CLIPConfig, CLIPModel

from intclip.backbones import from_openai_state_dict
from intclip.backbones.architecture import ARCHITECTURES


def hugging_face(vision, text, projection, act="quick_gelu"):
    config = CLIPConfig(
        vision_config={"hidden_act": act, "attention_dropout": 0.0, **vision},
        text_config={"hidden_act": act, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 0, **text},
        projection_dim=projection,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
        with torch.no_grad():  # with the default initialisation, wrong biases would go undetected
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
                elif "proj" in name or "fc" in name:
                    parameter.mul_(3)
    return model


def openai_layout(model):
    """OpenAI's key names, written out by hand from CLIPModel's modules."""
    out = {
        "logit_scale": model.logit_scale,
        "text_projection": model.text_projection.weight.T,
        "token_embedding.weight": model.text_model.embeddings.token_embedding.weight,
        "positional_embedding": model.text_model.embeddings.position_embedding.weight,
        "visual.class_embedding": model.vision_model.embeddings.class_embedding,
        "visual.conv1.weight": model.vision_model.embeddings.patch_embedding.weight,
        "visual.positional_embedding": model.vision_model.embeddings.position_embedding.weight,
        "visual.proj": model.visual_projection.weight.T,
    }
    norms = {
        "ln_final": model.text_model.final_layer_norm,
        "visual.ln_pre": model.vision_model.pre_layrnorm,
        "visual.ln_post": model.vision_model.post_layernorm,
    }
    linears = {}
    for prefix, tower in (("", model.text_model), ("visual.", model.vision_model)):
        for index, layer in enumerate(tower.encoder.layers):
            block = f"{prefix}transformer.resblocks.{index}"
            norms |= {f"{block}.ln_1": layer.layer_norm1, f"{block}.ln_2": layer.layer_norm2}
            linears |= {
                f"{block}.attn.out_proj": layer.self_attn.out_proj,
                f"{block}.mlp.c_fc": layer.mlp.fc1,
                f"{block}.mlp.c_proj": layer.mlp.fc2,
            }
            parts = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            out[f"{block}.attn.in_proj_weight"] = torch.cat([part.weight for part in parts])
            out[f"{block}.attn.in_proj_bias"] = torch.cat([part.bias for part in parts])
    for name, module in {**norms, **linears}.items():
        out |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {key: tensor.detach() for key, tensor in out.items()}


def token_rows(vocab, context):
    rows = torch.zeros(3, context, dtype=torch.int64)
    for row, length in zip(rows, (3, context // 2, context), strict=True):
        row[:length] = (values(f"ids{length}", (length,)).abs() * 1e4).long() % (vocab - 2) + 1
        row[length - 1] = vocab - 1
    return rows


def compare(model, backbone, tokens):
    vision = model.config.vision_config
    x = values("photo", (2, 3, vision.image_size, vision.image_size))
    with torch.no_grad():
        image = model.get_image_features(pixel_values=x).pooler_output
        hidden = model.vision_model(pixel_values=x).last_hidden_state
        patches = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 1:]))
        text = model.get_text_features(input_ids=tokens).pooler_output
    assert_close(backbone.encode_image(x), image, rtol=1e-4, atol=1e-4)
    assert_close(backbone.feature_map(x).flatten(2).transpose(1, 2), patches, rtol=1e-4, atol=1e-4)
    assert_close(backbone.encode_text(tokens), text, rtol=1e-4, atol=1e-4)
    assert_close(backbone.logit_scale, model.logit_scale.detach())


@pytest.mark.parametrize("layout", ["hugging_face", "openai"])
@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_small_clip(layout, act):
    model = hugging_face(
        {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 5, "intermediate_size": 384,
         "image_size": 48, "patch_size": 16},
        {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 3, "intermediate_size": 256,
         "vocab_size": 99, "max_position_embeddings": 20},
        projection=40,
        act=act,
    )  # fmt: skip
    state = model.state_dict() if layout == "hugging_face" else openai_layout(model)
    compare(model, from_openai_state_dict(state, activation=act), token_rows(99, 20))


def test_heads_can_be_told():
    model = hugging_face(
        {"hidden_size": 160, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 640,
         "image_size": 32, "patch_size": 16},
        {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 512,
         "vocab_size": 99, "max_position_embeddings": 20},
        projection=40,
    )  # fmt: skip
    compare(model, from_openai_state_dict(model.state_dict(), vision_heads=2, text_heads=4), token_rows(99, 20))


def test_vit_b_32_at_its_real_size():
    model = hugging_face({}, {}, projection=512)
    backbone = from_openai_state_dict(model.state_dict())
    assert backbone.architecture == ARCHITECTURES["ViT-B/32"]
    assert backbone.name == "ViT-B/32"
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in model.parameters())
    compare(model, backbone, token_rows(49408, 77))
