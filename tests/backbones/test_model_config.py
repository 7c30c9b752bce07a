"""The files beside a checkpoint are applied, or unsupported settings are rejected by name; nothing is ignored."""

import json
import logging
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hf_models import randomised
from PIL import Image
from safetensors.torch import save_file
from seeded import SMALL_VIT, pixels
from transformers import CLIPConfig, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from intclip.backbones import from_openai_state_dict, load_backbone
from intclip.backbones.checkpoints import openai_state_dict
from intclip.backbones.clip import random_clip
from intclip.backbones.model_config import read_config
from intclip.errors import CheckpointError, IntclipError

OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 48, "layers": 4, "width": 128, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 64, "width": 64, "heads": 1, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "resize_mode": "squash"},
}


VISION = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 384,
          "image_size": 48, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-3}  # fmt: skip
TEXT = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 256,
        "vocab_size": 99, "max_position_embeddings": 20}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    save_file(
        {key: tensor.contiguous() for key, tensor in openai_state_dict(random_clip(SMALL_VIT, seed=3)).items()},
        tmp_path / "open_clip_model.safetensors",
    )
    return tmp_path


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def changed(path, value):
    """OPEN_CLIP with one field set, or removed."""
    content = json.loads(json.dumps(OPEN_CLIP))
    *parents, last = path.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[last] = value
    return content


def load(folder, **options):
    return load_backbone("CLIP", checkpoint=folder, **options)


class TestOpenClip:
    def test_activation_heads_and_pixels_are_read(self, folder):
        content = changed("model_cfg.vision_cfg.head_width", 32)
        write(folder, "open_clip_config.json", content)
        backbone = load(folder)
        assert backbone.architecture == replace(SMALL_VIT, activation="gelu", vision_heads=4)
        look = backbone.preprocess
        assert (look.mean, look.std, look.crop) == ((0.5,) * 3, (0.5,) * 3, "squash")
        assert look.interpolation == "bicubic"

    @pytest.mark.parametrize(
        ("path", "value", "field", "expected"),
        [
            ("preprocess_cfg.interpolation", "bilinear", "interpolation", "bilinear"),
            ("preprocess_cfg.resize_mode", "shortest", "crop", "center"),
            ("preprocess_cfg.size", [48, 48], "size", 48),
            ("preprocess_cfg.mean", 0, "mean", (0.0, 0.0, 0.0)),
            ("preprocess_cfg.std", [1, 2, 3], "std", (1.0, 2.0, 3.0)),
        ],
    )
    def test_each_field_of_the_preprocessing(self, folder, path, value, field, expected):
        write(folder, "open_clip_config.json", changed(path, value))
        assert getattr(load(folder).preprocess, field) == expected

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("preprocess_cfg.resize_mode", "longest"),
            ("preprocess_cfg.interpolation", "random"),
            ("preprocess_cfg.mode", "L"),
            ("preprocess_cfg.size", 224),
            ("preprocess_cfg.size", [48, 64]),
            ("preprocess_cfg.std", [0.5, 0, 0.5]),
            ("preprocess_cfg.mean", [0.5]),
            ("preprocess_cfg.new_field", 3),
            ("model_cfg.text_cfg.hf_tokenizer_name", "bert-base-uncased"),
            ("model_cfg.text_cfg.hf_model_name", "roberta-base"),
            ("model_cfg.text_cfg.no_causal_mask", True),
            ("model_cfg.text_cfg.pool_type", "last"),
            ("model_cfg.text_cfg.vocab_size", 49408),
            ("model_cfg.text_cfg.new_field", "on"),
            ("model_cfg.vision_cfg.pool_type", "avg"),
            ("model_cfg.vision_cfg.ln_pre", False),
            ("model_cfg.vision_cfg.timm_model_name", "convnext_base"),
            ("model_cfg.vision_cfg.attentional_pool", True),
            ("model_cfg.vision_cfg.layers", 12),
            ("model_cfg.multimodal_cfg", {"width": 64}),
        ],
    )
    def test_what_is_not_supported_is_refused(self, folder, path, value):
        write(folder, "open_clip_config.json", changed(path, value))
        named = {"layers": "vision_layers", "size": "size|photos of 224"}.get(path.split(".")[-1], path.split(".")[-1])
        with pytest.raises(CheckpointError, match=named.replace("timm_model_name", "convnext_base")) as caught:
            load(folder)
        assert "open_clip" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("preprocess_cfg.mean", [10**400, 0, 0]),
            ("preprocess_cfg.mean", [float("nan"), 0, 0]),
            ("preprocess_cfg.size", -48),
            ("preprocess_cfg.size", 10**30),
            ("preprocess_cfg.interpolation", ["bicubic"]),
            ("model_cfg.embed_dim", [32]),
            ("model_cfg.text_cfg.vocab_size", [64]),
            ("model_cfg.text_cfg.norm_kwargs", {"eps": 10**400}),
            ("model_cfg.vision_cfg.timm_model_name", ["x"]),
            ("model_cfg.text_cfg.no\ncausal", ["long"] * 1000),
        ],
    )
    def test_what_no_file_should_hold_is_refused_in_a_short_line(self, folder, path, value):
        write(folder, "open_clip_config.json", changed(path, value))
        with pytest.raises(CheckpointError, match="open_clip_config") as caught:
            load(folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 600

    def test_tanh_and_epsilon(self, folder):
        content = changed("model_cfg.text_cfg.act_kwargs", {"approximate": "tanh"})
        content["model_cfg"]["text_cfg"]["norm_kwargs"] = {"eps": 1e-6}
        write(folder, "open_clip_config.json", content)
        found = load(folder).architecture
        assert (found.activation, found.text_activation, found.text_eps) == ("gelu", "gelu_tanh", 1e-6)


class TestHuggingFace:
    @pytest.fixture
    def model(self, tmp_path):
        model = randomised(CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=24)))
        model.save_pretrained(tmp_path)
        return model

    def test_two_activations_heads_and_epsilons(self, tmp_path, model):
        x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))
        backbone = load(tmp_path)
        with torch.no_grad():
            expected = model.get_image_features(pixel_values=x).pooler_output
        torch.testing.assert_close(backbone.encode_image(x), expected, rtol=1e-4, atol=1e-4)
        assert backbone.architecture.text_activation == "quick_gelu"

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "resample": 2},
            {"do_normalize": False},
            {"do_rescale": False, "image_mean": [100, 110, 120], "image_std": [60, 61, 62]},
            {"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
            {"size": {"height": 48, "width": 48}, "do_center_crop": False},
        ],
    )
    def test_pixels_are_those_of_the_image_processor(self, tmp_path, model, options):
        options = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}} | options
        processor = CLIPImageProcessorPil(**options)
        processor.save_pretrained(tmp_path)
        photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
        expected = processor(photo, return_tensors="pt").pixel_values[0]
        ours = load(tmp_path).preprocess(photo)
        level = 1 / (255 * min(load(tmp_path).preprocess.std))  # one of 256 levels
        assert (ours - expected).abs().max() <= 1.01 * level
        assert ((ours - expected).abs() > 0.01 * level).float().mean() < 0.002

    def test_siglips_processor_squashes(self, tmp_path, model):
        SiglipImageProcessorPil(size={"height": 48, "width": 48}).save_pretrained(tmp_path)
        look = load(tmp_path).preprocess
        assert (look.crop, look.mean, look.std) == ("squash", (0.5,) * 3, (0.5,) * 3)

    def test_a_processor_inside_a_whole_one_is_read(self, tmp_path, model):
        inner = CLIPImageProcessorPil(
            size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}, image_mean=[0.1] * 3
        ).to_dict()
        write(tmp_path, "processor_config.json", {"image_processor": json.loads(json.dumps(inner))})
        assert load(tmp_path).preprocess.mean == (0.1, 0.1, 0.1)
        write(tmp_path, "preprocessor_config.json", inner)
        assert load(tmp_path).preprocess.mean == (0.1, 0.1, 0.1)
        write(tmp_path, "preprocessor_config.json", inner | {"image_mean": [0.2] * 3})
        with pytest.raises(CheckpointError, match=r"preprocessor_config\.json.* processor_config\.json"):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            ({"do_resize": False}, "do_resize"),
            ({"do_center_crop": False}, "do_center_crop"),
            ({"size": {"shortest_edge": 64}}, "resized to 64 and cropped to 48"),
            ({"size": {"longest_edge": 48}}, "longest_edge"),
            ({"size": {"height": 48, "width": 64}}, "size"),
            ({"crop_size": {"height": 32, "width": 48}}, "crop_size"),
            ({"resample": 0}, "resample"),
            ({"do_pad": True}, "do_pad"),
            ({"image_mean": [0.5, 0.5]}, "image_mean"),
            ({"image_std": [0, 1, 1]}, "image_std"),
            ({"do_normalize": "yes"}, "do_normalize"),
            ({"rescale_factor": -1}, "rescale_factor"),
            ({"crop_pct": 0.9}, "crop_pct"),
            ({"image_processor_type": "ConvNextImageProcessor"}, "ConvNextImageProcessor"),
        ],
    )
    def test_other_preprocessing_is_refused(self, tmp_path, model, options, named):
        usual = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 48},
            "crop_size": {"height": 48, "width": 48},
        }
        write(tmp_path, "preprocessor_config.json", usual | options)
        with pytest.raises(CheckpointError, match=named) as caught:
            load(tmp_path)
        assert "preprocessor_config.json" in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"model_type": "siglip2"}, "siglip2.*NaFlex"),
            ({"model_type": "altclip"}, "altclip"),
            ({"model_type": 3}, "3"),
            ({"model_type": "siglip"}, "SigLIP"),
            ({"vision_config": {"hidden_act": "silu"}}, "silu"),
            ({"vision_config": {"hidden_size": 64}}, "vision_width 64"),
            ({"vision_config": {"num_channels": 4}}, "num_channels"),
            ({"vision_config": {"num_attention_heads": 0}}, "num_attention_heads"),
            ({"vision_config": {"num_attention_heads": 7}}, "7 heads"),
            ({"vision_config": "large"}, "vision_config"),
            ({"text_config": {"vocab_size": 49408}}, "vocab_size 49408"),
            ({"text_config": {"layer_norm_eps": "small"}}, "layer_norm_eps"),
            ({"projection_dim": 512}, "embed_dim 512"),
        ],
    )
    def test_a_configuration_of_something_else_is_refused(self, tmp_path, model, change, named):
        write(tmp_path, "config.json", {"model_type": "clip"} | change)
        with pytest.raises(CheckpointError, match=named):
            load(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json"])
    @pytest.mark.parametrize("text", ["{", "[1]", '"x"', "[" * 100_000])
    def test_damaged_json(self, tmp_path, model, name, text):
        inner = {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
        write(tmp_path, "preprocessor_config.json", inner)
        write(tmp_path, "processor_config.json", {"image_processor": inner})
        (tmp_path / name).write_text(text)
        with pytest.raises(CheckpointError, match=rf"/{re.escape(name)}"):
            load(tmp_path)


class TestGuess:
    """Without a configuration file QuickGELU is assumed, with a log line on how to change it."""

    def test_it_is_said_and_can_be_changed(self, folder, caplog):
        with caplog.at_level(logging.WARNING, "intclip"):
            guessed = load(folder)
        assert "QuickGELU" in caplog.text
        assert "activation=gelu" in caplog.text
        assert str(folder) in caplog.text
        caplog.clear()
        given = load(folder, activation="gelu")
        assert not caplog.text
        assert given.given_activation == "gelu"
        x = pixels(SMALL_VIT)
        assert not torch.equal(guessed.encode_image(x), given.encode_image(x))
        write(folder, "open_clip_config.json", {"model_cfg": {}})
        assert torch.equal(load(folder).encode_image(x), given.encode_image(x))
        assert not caplog.text

    def test_an_unknown_activation(self):
        with pytest.raises(CheckpointError, match=r"'swish'.*quick_gelu"):
            load_backbone("ViT-B/32", activation="swish")
        with pytest.raises(CheckpointError, match=r"^lite .*activation"):
            load_backbone("lite", activation="gelu")


def test_the_weights_own_layout_comes_first(folder):
    write(folder, "open_clip_config.json", OPEN_CLIP)
    write(folder, "config.json", {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}})
    weights = folder / "open_clip_model.safetensors"
    assert read_config(weights, "open_clip").details["activation"] == "gelu"
    assert read_config(weights, "hugging_face").details["activation"] == "quick_gelu"


def test_another_vocabulary_is_refused():
    other = random_clip(replace(SMALL_VIT, vocab_size=60_000))
    with pytest.raises(CheckpointError, match=r"60,000 tokens.*49,408"):
        from_openai_state_dict(openai_state_dict(other))
    with pytest.raises(IntclipError, match="64 tokens"):
        random_clip(SMALL_VIT).tokenize("a photo")
