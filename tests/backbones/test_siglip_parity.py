"""SigLIP's towers against `transformers.SiglipModel` with random weights, from the folder that it writes."""

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from seeded import values
from siglip_models import SMALL_TEXT, SMALL_VISION, regions, saved, words_tokenizer
from torch.testing import assert_close

from intclip.backbones import load_backbone
from intclip.errors import CheckpointError, IntclipError
from intclip.methods.prompts import PromptLearner, PromptOptions


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


def as_open_clip(model):
    """The same weights under timm's and open_clip's key names, written out by hand."""
    vision, text = model.vision_model, model.text_model
    out = {
        "logit_scale": model.logit_scale.reshape(()),
        "logit_bias": model.logit_bias.reshape(()),
        "visual.trunk.patch_embed.proj.weight": vision.embeddings.patch_embedding.weight,
        "visual.trunk.patch_embed.proj.bias": vision.embeddings.patch_embedding.bias,
        "visual.trunk.pos_embed": vision.embeddings.position_embedding.weight[None],
        "visual.trunk.attn_pool.latent": vision.head.probe,
        "text.token_embedding.weight": text.embeddings.token_embedding.weight,
        "text.positional_embedding": text.embeddings.position_embedding.weight,
    }
    pool, width = vision.head.attention, vision.config.hidden_size
    modules = {
        "visual.trunk.norm": vision.post_layernorm, "visual.trunk.attn_pool.norm": vision.head.layernorm,
        "visual.trunk.attn_pool.proj": pool.out_proj, "visual.trunk.attn_pool.mlp.fc1": vision.head.mlp.fc1,
        "visual.trunk.attn_pool.mlp.fc2": vision.head.mlp.fc2, "text.ln_final": text.final_layer_norm,
        "text.text_projection": text.head,
    }  # fmt: skip
    for part, whole in (("weight", pool.in_proj_weight), ("bias", pool.in_proj_bias)):
        out[f"visual.trunk.attn_pool.q.{part}"] = whole[:width]
        out[f"visual.trunk.attn_pool.kv.{part}"] = whole[width:]
    names = {
        "visual.trunk.blocks": ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2", "attn.qkv."),
        "text.transformer.resblocks": ("ln_1", "ln_2", "attn.out_proj", "mlp.c_fc", "mlp.c_proj", "attn.in_proj_"),
    }
    for (prefix, parts), tower in zip(names.items(), (vision, text), strict=True):
        for index, layer in enumerate(tower.encoder.layers):
            own = (layer.layer_norm1, layer.layer_norm2, layer.self_attn.out_proj, layer.mlp.fc1, layer.mlp.fc2)
            modules |= {f"{prefix}.{index}.{name}": module for name, module in zip(parts, own, strict=False)}
            three = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            for part in ("weight", "bias"):
                out[f"{prefix}.{index}.{parts[5]}{part}"] = torch.cat([getattr(one, part) for one in three])
    for name, module in modules.items():
        out |= {f"{name}.weight": module.weight, f"{name}.bias": module.bias}
    return {key: tensor.detach().contiguous() for key, tensor in out.items()}


def test_open_clips_layout_is_the_same_tower(tmp_path):
    vision = SMALL_VISION | {"hidden_size": 128, "num_attention_heads": 2}
    text = SMALL_TEXT | {"hidden_size": 128, "num_attention_heads": 2}
    model = saved(tmp_path / "hf", vision, text)
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(as_open_clip(model), folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": {
            "embed_dim": 128, "init_logit_bias": -10, "custom_text": True,
            "vision_cfg": {"image_size": 64, "timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map",
                           "timm_model_pretrained": False, "timm_proj": "none"},
            "text_cfg": {"context_length": 64, "vocab_size": 120, "hf_tokenizer_name": "timm/x", "width": 128,
                         "heads": 2, "layers": 3, "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True,
                         "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
                         "act_kwargs": {"approximate": "tanh"}},
        },
        "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"},
    }  # fmt: skip
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    one, other = (load_backbone("SigLIP2-B/16", checkpoint=path) for path in (tmp_path / "hf", folder))
    assert one.identity() == other.identity()
    assert one.preprocess == other.preprocess
    del config["model_cfg"]["text_cfg"]["no_causal_mask"]
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no_causal_mask"):
        load_backbone("SigLIP2-B/16", checkpoint=folder)


@pytest.mark.parametrize(("pad", "end"), [("</s>", "</s>"), ("<pad>", "<eos>")])
def test_texts_are_cleaned_ended_and_read_at_the_last_place(tmp_path, pad, end):
    model = saved(tmp_path, SMALL_VISION, SMALL_TEXT)
    ids = words_tokenizer(tmp_path, pad=pad, end=end)
    backbone = load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    tokens = backbone.tokenize(["A photo, of a DOG!", "dog"])
    row = [ids[word] for word in ("a", "photo", "of", "a", "dog")] + [ids[end]]
    assert tokens.tolist() == [row, [ids["dog"], ids[end], *[ids[pad]] * 4]]
    assert backbone.text.lengths(tokens).tolist() == [6, 2]
    whole = torch.full((2, 64), ids[pad])
    whole[:, :6] = tokens
    with torch.no_grad():
        expected = model.get_text_features(input_ids=whole).pooler_output
    assert_close(backbone.encode_text(tokens), expected, rtol=1e-4, atol=1e-4)
    unit = expected / expected.norm(dim=1, keepdim=True)
    assert_close(backbone.embed_texts(["A photo, of a DOG!", "dog"]), unit, rtol=1e-4, atol=1e-4)
    assert backbone.unknown_share(["a cat", "dog"]) == [0.5, 0.0]
    with pytest.raises(IntclipError, match="a a a"):
        backbone.tokenize(["a " * 64])


def test_another_tokenizer_is_refused_and_none_is_said(tmp_path):
    saved(tmp_path, SMALL_VISION, SMALL_TEXT)
    without = load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    for embed in (
        without.tokenize,
        partial(without.embed_texts, long="average"),  # does not halve a text that no halving makes fit
    ):
        with pytest.raises(IntclipError, match=r"tokenizer\.json"):
            embed(["a dog"])
    words_tokenizer(tmp_path, pad="<pad>", end="<eos>", vocabulary=["<unk>", *map(str, range(200))])
    with pytest.raises(CheckpointError, match=r"tokenizer\.json .*120 tokens"):
        load_backbone("SigLIP-B/16", checkpoint=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_backbone("SigLIP-B/16", checkpoint=tmp_path)


def test_a_prompt_gives_the_same_features_in_any_batch(tmp_path):
    saved(tmp_path, SMALL_VISION, SMALL_TEXT)
    words_tokenizer(tmp_path, pad="<pad>", end="<eos>")
    text = load_backbone("SigLIP-B/16", checkpoint=tmp_path).text
    sentences = ["a dog", "a photo of a dog of a photo of a dog"]
    both = PromptLearner(text, sentences, PromptOptions(context_length=4))
    alone = PromptLearner(text, sentences[:1], PromptOptions(context_length=4))
    with torch.no_grad():
        alone.context.copy_(both.context[:, :1])
        assert_close(alone.encode(text)[:, 0], both.encode(text)[:, 0], rtol=1e-5, atol=1e-5)
    for position in ("middle", "front"):
        learner = PromptLearner(text, sentences, PromptOptions(context_length=4), class_token_position=position)
        embeddings, lengths = learner.embeddings()
        assert lengths.tolist() == [7, 16] * 2  # words, context and the end token
        end = text.embed(torch.tensor([[1]]))[0, 0]
        assert torch.equal(embeddings[0, 6], end)
