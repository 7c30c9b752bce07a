"""SigLIP's towers against `transformers.SiglipModel` with random weights, from the folder that it writes."""

import pytest
import torch
import torch.nn.functional as F
from hf_models import randomised
from seeded import values
from torch.testing import assert_close
from transformers import SiglipConfig, SiglipModel

from intclip.backbones import load_backbone

SMALL_VISION = {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 5, "intermediate_size": 200,
                "image_size": 64, "patch_size": 16}  # fmt: skip
SMALL_TEXT = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 160,
              "vocab_size": 120, "max_position_embeddings": 64}  # fmt: skip


def saved(folder, vision, text):
    model = randomised(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    model.save_pretrained(folder)
    return model


def regions(model, x):
    """The query's values at each patch, by hand from the model's modules."""
    head = model.vision_model.head.attention
    hidden = model.vision_model(pixel_values=x).last_hidden_state  # behind the last norm
    width = hidden.shape[-1]
    value = F.linear(hidden, head.in_proj_weight[2 * width :], head.in_proj_bias[2 * width :])
    return F.normalize(head.out_proj(value), dim=-1)


def compare(model, backbone, batch=2):
    vision, text = model.config.vision_config, model.config.text_config
    x = values("photo", (batch, 3, vision.image_size, vision.image_size))
    tokens = (values("ids", (3, text.max_position_embeddings)).abs() * 1e4).long() % text.vocab_size
    with torch.no_grad():
        image = model.get_image_features(pixel_values=x).pooler_output
        patches = regions(model, x)
        words = model.get_text_features(input_ids=tokens).pooler_output
    assert_close(backbone.encode_image(x), image, rtol=1e-4, atol=1e-4)
    assert_close(backbone.feature_map(x).flatten(2).transpose(1, 2), patches, rtol=1e-4, atol=1e-4)
    assert_close(backbone.encode_text(tokens), words, rtol=1e-4, atol=1e-4)
    assert_close(backbone.logit_scale, model.logit_scale.detach().reshape(()))
    assert_close(backbone.logit_bias, model.logit_bias.detach().reshape(()))


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
@pytest.mark.parametrize("eps", [1e-6, 1e-3])
def test_small_towers_of_any_width_and_depth(tmp_path, act, eps):
    extra = {"hidden_act": act, "layer_norm_eps": eps}
    model = saved(tmp_path, SMALL_VISION | extra, SMALL_TEXT | extra)
    backbone = load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    assert backbone.name == "SigLIP-B/16"
    assert backbone.grid == (4, 4)
    compare(model, backbone)


def test_patches_may_leave_a_rim(tmp_path):
    model = saved(tmp_path, SMALL_VISION | {"image_size": 70}, SMALL_TEXT)
    backbone = load_backbone("SigLIP-SO400M/14@384px", checkpoint=tmp_path)
    assert backbone.image_size == 70
    compare(model, backbone)


def test_base_size(tmp_path):
    model = saved(tmp_path, {}, {})
    backbone = load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    assert sum(p.numel() for p in backbone.parameters()) == sum(p.numel() for p in model.parameters())
    compare(model, backbone, batch=1)


def test_short_tokens_are_padded_to_the_whole_context(tmp_path):
    model = saved(tmp_path, SMALL_VISION, SMALL_TEXT)
    backbone = load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    tokens = torch.tensor([[5, 7, 9], [8, 1, 1]])
    whole = torch.full((2, 64), 1)  # SigLIP pads with its end token
    whole[:, :3] = tokens
    with torch.no_grad():
        expected = model.get_text_features(input_ids=whole).pooler_output
    assert_close(backbone.encode_text(tokens), expected, rtol=1e-4, atol=1e-4)
    lengths = torch.tensor([3, 2])
    embedded = backbone.text.embed(torch.tensor([[5, 7, 9, 4], [8, 1, 6, 6]]))
    assert_close(backbone.text.encode_embeddings(embedded, lengths), expected, rtol=1e-4, atol=1e-4)
