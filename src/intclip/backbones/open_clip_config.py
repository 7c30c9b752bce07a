"""Read open_clip's description of a model: `open_clip_config.json`."""

import functools
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from intclip.backbones.architecture import Activation, Family
from intclip.backbones.config_section import ModelConfig, Section, given

_TIMM_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("vit_*_siglip_*", "siglip"),
    ("eva02_*_clip_*", "eva02"),
    ("vit_pe_core_*", "pe"),
    ("vit_*_tipsv2*", "tipsv2"),
    ("fastvit_mci[012]", "mobileclip"),
    ("vit_base_mci_*", "mobileclip_vit"),
)
_TRAINING_ONLY = (
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "output_tokens",
)


def open_clip_config(content: Mapping[str, Any], source: Path) -> ModelConfig:
    """Interpret `open_clip_config.json`.

    Raises:
        CheckpointError: A setting is not supported; file and field are named.
    """
    model = Section(content["model_cfg"], source, "model_cfg")
    vision = Section(model.take("vision_cfg", {}), source, "vision_cfg")
    text = Section(model.take("text_cfg", {}), source, "text_cfg")
    embed_dim = model.whole("embed_dim")
    quick = model.flag("quick_gelu", False)
    model.only("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
    timm = vision.take("timm_model_name")
    family = _family(timm, text, vision)
    usual: Activation = "quick_gelu" if quick else "gelu"
    sizes: dict[str, Any] = {"embed_dim": embed_dim, "image_size": vision.square("image_size")}
    details: dict[str, Any] = {}
    if timm is None:
        sizes |= {"patch_size": vision.square("patch_size"), "vision_width": vision.whole("width")}
        layers = vision.wholes("layers")
        sizes["vision_layers"] = tuple(layers) if isinstance(layers, list) else layers
        head_width = vision.whole("head_width")
        if head_width is not None:
            details["vision_head_width"] = head_width
        vision.take("mlp_ratio")  # the shapes of the weights show it
        details["activation"], details["vision_eps"] = _layer_details(vision, usual)
        if vision.take("ln_pre", True) is not True:
            raise vision.error("ln_pre = False is not supported")
        pool = vision.take("pool_type", "tok")
        if pool != "tok":
            raise vision.error(f"pool_type = {pool!r} is not supported")
    else:
        pool = {"siglip": "map", "pe": "map", "mobileclip": "avg"}.get(family, "token")
        if (told := vision.take("timm_pool", pool)) != pool:
            raise vision.error(f"timm_pool = {told!r} is not supported; {timm} has {pool!r}")
        projection = vision.take("timm_proj")
        if projection not in (None, "", "none"):
            raise vision.error(f"timm_proj = {projection!r} is not supported")
    vision.only(*_TRAINING_ONLY)
    sizes |= {
        "context_length": text.whole("context_length"),
        "vocab_size": text.whole("vocab_size"),
        "text_width": text.whole("width"),
        "text_layers": text.whole("layers"),
    }
    details["text_heads"] = text.whole("heads")
    text.take("mlp_ratio")
    details["text_activation"], details["text_eps"] = _layer_details(text, usual)
    _TEXT_RULES[family](text, details)
    text.only("output_tokens")
    pixels = _pixels(content.get("preprocess_cfg"), source)
    return ModelConfig(source, family, given(sizes), given(details), pixels, {})


def _family(timm: object, text: Section, vision: Section) -> Family:
    for section in (vision, text):
        if other := section.take("hf_model_name"):
            raise section.error(f"hf_model_name = {other!r} is not supported")
    if timm is None:
        return "metaclip2" if str(text.content.get("hf_tokenizer_name")).endswith("xlm-v-base") else "clip"
    for pattern, family in _TIMM_FAMILIES:
        if fnmatch(str(timm), pattern):
            return family
    raise vision.error(f"the image tower {timm} is not supported")


def _layer_details(section: Section, usual: Activation) -> tuple[Activation, float]:
    """Return activation and epsilon of open_clip's transformers."""
    activation: Activation = usual
    arguments = section.take("act_kwargs") or {}
    if arguments == {"approximate": "tanh"}:
        activation = "gelu_tanh"
    elif arguments:
        raise section.error(f"act_kwargs = {arguments!r} is not supported")
    if (layer := section.take("act_layer")) is not None:
        if layer not in ("relu", "gelu"):
            raise section.error(f"act_layer = {layer!r} is not supported")
        activation = layer if activation == usual else activation
    norm = Section(section.take("norm_kwargs") or {}, section.source, "norm_kwargs")
    eps = norm.number("eps", 1e-5)
    norm.only()
    return activation, eps


def _expect(text: Section, **wanted: Any) -> None:
    for key, (value, default) in wanted.items():
        if (told := text.take(key, default)) != value:
            raise text.error(f"{key} = {told!r} is not supported here")


def _clip_text(text: Section, details: dict[str, Any], *, causal: bool = True) -> None:
    if tokenizer := text.take("hf_tokenizer_name"):
        raise text.error(
            f"hf_tokenizer_name = {tokenizer!r} is not supported with this image tower; CLIP's own tokens are"
        )
    _expect(
        text,
        pool_type=("argmax", "argmax"),
        no_causal_mask=(not causal, False),
        proj_bias=(False, False),
        proj_type=("linear", "linear"),
        pad_id=(0, 0),
        tokenizer_kwargs=({}, {}),
    )


def _metaclip2_text(text: Section, details: dict[str, Any]) -> None:
    text.take("hf_tokenizer_name")
    details["end_token"] = text.whole("eos_id", 2)
    _expect(text, pool_type=("eos", "eos"), no_causal_mask=(False, False), proj_bias=(False, False), pad_id=(0, 0))
    text.take("tokenizer_kwargs")


def _siglip_text(text: Section, details: dict[str, Any]) -> None:
    text.take("hf_tokenizer_name")
    _expect(text, pool_type=("last", "argmax"), no_causal_mask=(True, False), proj_bias=(True, False))
    _expect(text, tokenizer_kwargs=({"clean": "canonicalize"}, {"clean": "canonicalize"}))


def _tipsv2_text(text: Section, details: dict[str, Any]) -> None:
    for key in ("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs"):
        text.take(key)
    _expect(
        text,
        pool_type=("mean", "argmax"),
        no_causal_mask=(True, False),
        use_pad_mask=(True, False),
        pos_embed_type=("sinusoidal", "learnable"),
        scale_sqrt_depth=(True, False),
        proj_type=("none", "linear"),
    )


_TEXT_RULES: dict[Family, Callable[[Section, dict[str, Any]], None]] = {
    "clip": _clip_text,
    "eva02": _clip_text,
    "pe": _clip_text,
    "mobileclip": functools.partial(_clip_text, causal=False),
    "mobileclip_vit": _clip_text,
    "metaclip2": _metaclip2_text,
    "siglip": _siglip_text,
    "tipsv2": _tipsv2_text,
}


def _pixels(content: object, source: Path) -> dict[str, Any]:
    if content is None:
        return {}
    section = Section(content, source, "preprocess_cfg")
    pixels: dict[str, Any] = {"size": section.square("size")}
    pixels |= {"mean": section.three("mean"), "std": section.three("std")}
    pixels["interpolation"] = section.choice("interpolation", {"bicubic": "bicubic", "bilinear": "bilinear"})
    pixels["crop"] = section.choice("resize_mode", {"shortest": "center", "squash": "squash"})
    if (mode := section.take("mode", "RGB")) != "RGB":
        raise section.error(f"mode = {mode!r} is not supported; photos are RGB")
    section.only("fill_color")  # for resize_mode longest, which is rejected
    return given(pixels)
