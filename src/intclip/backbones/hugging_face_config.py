"""Read Hugging Face's description of a model: `config.json` and `preprocessor_config.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intclip.backbones.architecture import Family
from intclip.backbones.config_section import ModelConfig, Section, given, read_object
from intclip.backbones.weight_files import PROCESSORS
from intclip.errors import CheckpointError

_FAMILIES: dict[str, Family] = {
    "clip": "clip",
    "metaclip_2": "metaclip2",
    "siglip": "siglip",
    "tipsv2": "tipsv2",
}
_REFUSED = {
    "siglip2": "SigLIP 2 NaFlex (photos of any aspect)",
    "altclip": "AltCLIP",
    "chinese_clip": "Chinese-CLIP",
    "clipseg": "CLIPSeg",
    "blip": "BLIP",
    "align": "ALIGN",
    "evaclip": "EVA-CLIP in its authors' own layout",
}


@dataclass(frozen=True)
class _Usual:
    """A family's defaults for fields missing from the file."""

    activation: str
    text_activation: str
    vision_heads: int
    text_heads: int
    vision_eps: float
    text_eps: float


_USUAL: dict[Family, _Usual] = {
    "clip": _Usual("quick_gelu", "quick_gelu", 12, 8, 1e-5, 1e-5),
    "metaclip2": _Usual("quick_gelu", "quick_gelu", 12, 8, 1e-5, 1e-5),
    "siglip": _Usual("gelu_pytorch_tanh", "gelu_pytorch_tanh", 12, 12, 1e-6, 1e-6),
    "tipsv2": _Usual("gelu", "relu", 12, 12, 1e-6, 1e-5),
}


def hugging_face_config(content: Mapping[str, Any], source: Path) -> ModelConfig:
    """Interpret `config.json`, and the preprocessing beside it.

    Raises:
        CheckpointError: A setting is not supported; file and field are named.
    """
    kind = content.get("model_type", "clip")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(_FAMILIES)
        what = f" ({_REFUSED[kind]})" if isinstance(kind, str) and kind in _REFUSED else ""
        raise CheckpointError(f"{source}: the model type {kind!r:.80}{what} is not supported; known: {known}")
    usual = _USUAL[family]
    vision = Section(content.get("vision_config") or {}, source, "vision_config")
    text = Section(content.get("text_config") or {}, source, "text_config")
    if (channels := vision.take("num_channels", 3)) != 3:
        raise vision.error(f"num_channels = {channels!r} is not supported; photos have three")
    for key, wanted in (("vision_use_head", True), ("use_swiglu_ffn", False), ("qkv_bias", True)):
        if vision.take(key, wanted) is not wanted:
            raise vision.error(f"{key} = {not wanted} is not supported")
    if text.take("scale_sqrt_depth", True) is not True:
        raise text.error("scale_sqrt_depth = False is not supported")
    projection = content.get("projection_dim") if family in ("clip", "metaclip2") else None
    sizes: dict[str, Any] = {
        "embed_dim": projection if type(projection) is int else None,
        "image_size": vision.square("image_size"),
        "patch_size": vision.square("patch_size"),
        "vision_width": vision.whole("hidden_size"),
        "vision_layers": vision.whole("num_hidden_layers"),
        "registers": vision.take("num_register_tokens"),
        "context_length": text.whole("max_position_embeddings"),
        "vocab_size": text.whole("vocab_size"),
        "text_width": text.whole("hidden_size"),
        "text_layers": text.whole("num_hidden_layers"),
    }
    details: dict[str, Any] = {
        "activation": vision.activation("hidden_act", usual.activation),
        "text_activation": text.activation("hidden_act", usual.text_activation),
        "vision_heads": vision.whole("num_attention_heads", usual.vision_heads),
        "text_heads": text.whole("num_attention_heads", usual.text_heads),
        "vision_eps": vision.number("layer_norm_eps", usual.vision_eps),
        "text_eps": text.number("layer_norm_eps", usual.text_eps),
    }
    end = text.take("eos_token_id")
    if family == "metaclip2":
        details["end_token"] = end if type(end) is int else 2
    elif family == "clip" and type(end) is int and end != 2 and 0 <= end < (sizes["vocab_size"] or 49408):
        details["end_token"] = end  # 2 is an old way to write "the highest id"
    pad = text.take("pad_token_id")
    tokenizer = {"pad_id": pad} if type(pad) is int else {}
    return ModelConfig(source, family, given(sizes), details, hugging_face_pixels(source.parent), tokenizer)


@dataclass(frozen=True)
class _Processor:
    """An image processor's defaults for fields missing from the file."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: bool
    resample: int = 3
    normalize: bool = True


_CLIP_PIXELS = _Processor((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), square=False)
_HALF_PIXELS = _Processor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), square=True)
_PROCESSORS = {
    "CLIPImageProcessor": _CLIP_PIXELS,
    "CLIPFeatureExtractor": _CLIP_PIXELS,
    "SiglipImageProcessor": _HALF_PIXELS,
    "ViTImageProcessor": _Processor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), square=True, resample=2),
    "Tipsv2ImageProcessor": _Processor((0.0,) * 3, (1.0,) * 3, square=True, resample=2, normalize=False),
}
_PROCESSOR_NOTES = (
    "processor_class", "image_processor_type", "feature_extractor_type", "do_convert_rgb", "_valid_processor_keys",
    "data_format", "input_data_format", "default_to_square", "use_fast", "device", "transformers_version",
)  # fmt: skip
"""Fields that do not change the pixels of an RGB photo."""


def hugging_face_pixels(folder: Path) -> dict[str, Any]:
    """Return fields of `Preprocess` from `preprocessor_config.json`, a combined processor file, or both.

    Raises:
        CheckpointError: A file is damaged or has an unsupported setting, or the two differ.
    """
    found: list[dict[str, Any]] = []
    for name in PROCESSORS:
        content = read_object(folder / name)
        content = content.get("image_processor", {}) if name == "processor_config.json" else content
        if content:
            found.append(_processor_pixels(Section(content, folder / name, "image processor")))
    if len(found) > 1 and found[0] != found[1]:
        raise CheckpointError(f"{folder}: {' and '.join(PROCESSORS)} describe different pixels; keep the right one")
    return found[0] if found else {}


def _processor_pixels(section: Section) -> dict[str, Any]:
    kind = section.content.get("image_processor_type") or section.content.get("feature_extractor_type")
    plain = str(kind or "CLIPImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if plain not in _PROCESSORS:
        raise section.error(f"{kind} is not supported; known: {', '.join(_PROCESSORS)}")
    usual = _PROCESSORS[plain]
    if not section.flag("do_resize", True):
        raise section.error("do_resize = False is not supported: photos have all sizes")
    pixels: dict[str, Any] = {"interpolation": section.choice("resample", {2: "bilinear", 3: "bicubic"})}
    pixels["interpolation"] = pixels["interpolation"] or {2: "bilinear", 3: "bicubic"}[usual.resample]
    square, size = _processor_size(section, usual.square)
    crop = section.flag("do_center_crop", not usual.square)
    cropped = _processor_crop(section, size)
    if not square and not crop:
        raise section.error("do_center_crop = False is not supported with a shortest edge: photos must become square")
    if crop and cropped != size:
        raise section.error(f"photos are resized to {size} and cropped to {cropped} pixels; these must be the same")
    pixels |= {"size": size, "crop": "squash" if square else "center"}
    scale = 1.0
    if section.flag("do_rescale", True):
        scale = 255 * section.number("rescale_factor", 1 / 255)
    else:
        scale = 255.0
        section.take("rescale_factor")
    scale = 1.0 if math.isclose(scale, 1) else scale
    mean, std = (section.three(key) for key in ("image_mean", "image_std"))
    if section.flag("do_normalize", usual.normalize):
        mean, std = mean or usual.mean, std or usual.std
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    # Values in [0, 1] are first multiplied by the scale.
    pixels |= {"mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}
    section.only(*_PROCESSOR_NOTES)
    return given(pixels)


def _processor_size(section: Section, square: bool) -> tuple[bool, int | None]:
    """Return whether photos are squashed, and the side that they are resized to."""
    size = section.content.get("size")
    if not isinstance(size, Mapping):
        return square, section.whole("size", 224) or 224
    section.take("size")
    fields = Section(size, section.source, "size")
    if size.keys() == {"shortest_edge"}:
        return False, fields.whole("shortest_edge")
    if size.keys() == {"height", "width"} and size["height"] == size["width"]:
        return True, fields.whole("height")
    raise section.error(f"size = {size!r} is not supported; known: a shortest edge, or the same height and width")


def _processor_crop(section: Section, size: int | None) -> int | None:
    crop = section.content.get("crop_size")
    if not isinstance(crop, Mapping):
        return section.whole("crop_size") or size
    section.take("crop_size")
    if crop.keys() == {"height", "width"} and crop["height"] == crop["width"]:
        return Section(crop, section.source, "crop_size").whole("height")
    raise section.error(f"crop_size = {crop!r} is not supported; known: the same height and width")
