"""What the JSON files beside a checkpoint say that its weights do not show: family, activation, heads, pixels.

Everything that decides the numbers is read or refused. Two kinds of files are known: open_clip's
`open_clip_config.json`, and Hugging Face's `config.json` with `preprocessor_config.json`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from intclip.backbones.architecture import Activation, Family
from intclip.backbones.sources import HUGGING_FACE, OPEN_CLIP, PROCESSORS
from intclip.errors import CheckpointError

Layout = Literal["open_clip", "hugging_face"]
_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_HF_FAMILIES: dict[str, Family] = {
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
class ModelConfig:
    """What the files say; empty where there are none.

    Attributes:
        source: The file that describes the model; None where there is none.
        family: Which towers; None where nothing says so.
        sizes: Fields of `Architecture` that the weights must show too.
        details: Fields of `Architecture` that the weights do not show; also `vision_head_width`, for `vision_heads`.
        pixels: Fields of `Preprocess`, size included where it is given.
        tokenizer: What the text tower needs to know of its tokens, such as `pad_id`.
    """

    source: Path | None = None
    family: Family | None = None
    sizes: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    pixels: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)


def read_config(weights: Path, layout: Layout) -> ModelConfig:
    """What lies beside a weight file, the files of its own layout before the other's.

    Args:
        weights: The file; its folder is looked at.
        layout: Of the weights.

    Raises:
        CheckpointError: A file is not JSON, or it asks for something that is not supported; both are named.
    """
    open_clip, hugging_face = (_load(weights.parent / name) for name in (OPEN_CLIP, HUGGING_FACE))
    if "model_cfg" in hugging_face and not open_clip:
        open_clip, hugging_face = hugging_face, {}
    name = OPEN_CLIP if (weights.parent / OPEN_CLIP).is_file() else HUGGING_FACE
    found: dict[Layout, ModelConfig] = {}
    if "model_cfg" in open_clip:
        found["open_clip"] = _open_clip(open_clip, weights.parent / name)
    if {"vision_config", "text_config", "model_type"} & hugging_face.keys():
        found["hugging_face"] = _hugging_face(hugging_face, weights.parent / HUGGING_FACE)
    for kind in (layout, *found):
        if kind in found:
            return found[kind]
    return ModelConfig(pixels=_hugging_face_pixels(weights.parent))


def _load(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read {file}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read {file}: expected a JSON object, not {type(content).__name__}")
    return content


class _Section:
    """A JSON object that is read field by field; what is left over must be off."""

    def __init__(self, content: object, source: Path, name: str) -> None:
        if not isinstance(content, Mapping):
            raise CheckpointError(f"{source}: {name} is not an object; fetch the file again")
        self.content, self.source, self.name = dict(content), source, name

    def take(self, key: str, default: Any = None) -> Any:
        return self.content.pop(key, default)

    def whole(self, key: str, default: Any = None) -> Any:
        """A positive whole number, or a list of them; None where it is missing."""
        value = self.content.pop(key, default)
        items = value if isinstance(value, list) and value else [value]
        if value is not None and not all(type(item) is int and item > 0 for item in items):
            raise self.error(f"{key} is {value!r}, not a positive whole number")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.content.pop(key, default)
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
            raise self.error(f"{key} is {value!r}, not a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.content.pop(key, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}, neither true nor false")
        return value

    def activation(self, key: str, default: str) -> Activation:
        value = self.content.pop(key, default)
        if value not in _ACTIVATIONS:
            raise self.error(f"the activation {value!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[value]

    def only(self, *harmless: str) -> None:
        """Refuse what is left over and on."""
        left = sorted(key for key, value in self.content.items() if key not in harmless and value not in _OFF)
        if left:
            shown = ", ".join(f"{key} = {self.content[key]!r}" for key in left[:4])
            raise self.error(f"{shown} is not supported")

    def error(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {self.name}: {what}")


_OFF: tuple[Any, ...] = (None, False, 0, "", [], {}, "none")

# ── open_clip ──

_TIMM_FAMILIES: tuple[tuple[str, Family], ...] = (
    ("vit_*_siglip_*", "siglip"),
    ("eva02_*_clip_*", "eva02"),
    ("vit_pe_core_*", "pe"),
    ("vit_*_tipsv2*", "tipsv2"),
)
_TRAINING_ONLY = (
    "patch_dropout",
    "timm_drop",
    "timm_drop_path",
    "timm_model_pretrained",
    "output_tokens",
)


def _open_clip(content: Mapping[str, Any], source: Path) -> ModelConfig:
    model = _Section(content["model_cfg"], source, "model_cfg")
    vision = _Section(model.take("vision_cfg", {}), source, "vision_cfg")
    text = _Section(model.take("text_cfg", {}), source, "text_cfg")
    embed_dim = model.whole("embed_dim")
    quick = model.flag("quick_gelu", False)
    model.only("custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale")
    timm = vision.take("timm_model_name")
    family = _open_clip_family(timm, text, vision)
    usual: Activation = "quick_gelu" if quick else "gelu"
    sizes = {"embed_dim": embed_dim, "image_size": _square(vision, "image_size")}
    details: dict[str, Any] = {}
    if timm is None:
        sizes |= {"patch_size": _square(vision, "patch_size"), "vision_width": vision.whole("width")}
        layers = vision.whole("layers")
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
        pool = {"siglip": "map", "pe": "map"}.get(family, "token")
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
    pixels = _open_clip_pixels(content.get("preprocess_cfg"), source)
    return ModelConfig(source, family, _given(sizes), _given(details), pixels, {})


def _open_clip_family(timm: object, text: "_Section", vision: "_Section") -> Family:
    for section in (vision, text):
        if other := section.take("hf_model_name"):
            raise section.error(f"hf_model_name = {other!r} is not supported")
    if timm is None:
        return "metaclip2" if str(text.content.get("hf_tokenizer_name")).endswith("xlm-v-base") else "clip"
    for pattern, family in _TIMM_FAMILIES:
        if fnmatch(str(timm), pattern):
            return family
    raise vision.error(f"the image tower {timm} is not supported")


def _layer_details(section: "_Section", usual: Activation) -> tuple[Activation, float]:
    """Activation and epsilon of open_clip's transformers."""
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
    norm = _Section(section.take("norm_kwargs") or {}, section.source, "norm_kwargs")
    eps = norm.number("eps", 1e-5)
    norm.only()
    return activation, eps


def _expect(text: "_Section", **wanted: Any) -> None:
    for key, (value, default) in wanted.items():
        if (told := text.take(key, default)) != value:
            raise text.error(f"{key} = {told!r} is not supported here")


def _clip_text(text: "_Section", details: dict[str, Any]) -> None:
    if tokenizer := text.take("hf_tokenizer_name"):
        raise text.error(
            f"hf_tokenizer_name = {tokenizer!r} is not supported with this image tower; CLIP's own tokens are"
        )
    _expect(
        text,
        pool_type=("argmax", "argmax"),
        no_causal_mask=(False, False),
        proj_bias=(False, False),
        proj_type=("linear", "linear"),
        pad_id=(0, 0),
        tokenizer_kwargs=({}, {}),
    )


def _metaclip2_text(text: "_Section", details: dict[str, Any]) -> None:
    text.take("hf_tokenizer_name")
    details["end_token"] = text.whole("eos_id", 2)
    _expect(text, pool_type=("eos", "eos"), no_causal_mask=(False, False), proj_bias=(False, False), pad_id=(0, 0))
    text.take("tokenizer_kwargs")


def _siglip_text(text: "_Section", details: dict[str, Any]) -> None:
    text.take("hf_tokenizer_name")
    _expect(text, pool_type=("last", "argmax"), no_causal_mask=(True, False), proj_bias=(True, False))
    _expect(text, tokenizer_kwargs=({"clean": "canonicalize"}, {"clean": "canonicalize"}))


def _tipsv2_text(text: "_Section", details: dict[str, Any]) -> None:
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


_TEXT_RULES: dict[Family, Callable[["_Section", dict[str, Any]], None]] = {
    "clip": _clip_text,
    "eva02": _clip_text,
    "pe": _clip_text,
    "metaclip2": _metaclip2_text,
    "siglip": _siglip_text,
    "tipsv2": _tipsv2_text,
}


def _square(section: "_Section", key: str) -> int | None:
    value = section.whole(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise section.error(f"{key} = {value!r} is not a square")
        return int(value[0])
    return None if value is None else int(value)


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _open_clip_pixels(content: object, source: Path) -> dict[str, Any]:
    if content is None:
        return {}
    section = _Section(content, source, "preprocess_cfg")
    pixels: dict[str, Any] = {"size": _square(section, "size")}
    pixels |= {"mean": _three(section, "mean"), "std": _three(section, "std")}
    pixels["interpolation"] = _choice(section, "interpolation", {"bicubic": "bicubic", "bilinear": "bilinear"})
    pixels["crop"] = _choice(section, "resize_mode", {"shortest": "center", "squash": "squash"})
    if (mode := section.take("mode", "RGB")) != "RGB":
        raise section.error(f"mode = {mode!r} is not supported; photos are RGB")
    section.only("fill_color")  # for resize_mode longest, which is refused
    return _given(pixels)


def _choice(section: "_Section", key: str, known: Mapping[Any, str]) -> str | None:
    value = section.take(key)
    if value is None:
        return None
    if not isinstance(value, str | int) or value not in known:
        raise section.error(f"{key} = {value!r} is not supported; known: {', '.join(map(str, known))}")
    return known[value]


def _three(section: "_Section", key: str, *, above: float = -math.inf) -> tuple[float, ...] | None:
    """A number a channel, or one for all of them."""
    value = section.take(key)
    if value is None:
        return None
    values = value if isinstance(value, list) else [value] * 3
    if len(values) != 3 or not all(type(v) in (int, float) and math.isfinite(v) for v in values):
        raise section.error(f"{key} = {value!r} is not three numbers")
    if ("std" in key and min(values) <= 0) or min(values) <= above:
        raise section.error(f"{key} = {value!r} must be above 0")
    return tuple(map(float, values))


# ── Hugging Face ──


@dataclass(frozen=True)
class _Usual:
    """What a family's configuration class takes for a field that the file leaves out."""

    activation: str
    text_activation: str
    vision_heads: int
    text_heads: int
    vision_eps: float
    text_eps: float


_HF_USUAL: dict[Family, _Usual] = {
    "clip": _Usual("quick_gelu", "quick_gelu", 12, 8, 1e-5, 1e-5),
    "metaclip2": _Usual("quick_gelu", "quick_gelu", 12, 8, 1e-5, 1e-5),
    "siglip": _Usual("gelu_pytorch_tanh", "gelu_pytorch_tanh", 12, 12, 1e-6, 1e-6),
    "tipsv2": _Usual("gelu", "relu", 12, 12, 1e-6, 1e-5),
}


def _hugging_face(content: Mapping[str, Any], source: Path) -> ModelConfig:
    kind = content.get("model_type", "clip")
    family = _HF_FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        known = ", ".join(_HF_FAMILIES)
        what = f" ({_REFUSED[kind]})" if kind in _REFUSED else ""
        raise CheckpointError(f"{source}: the model type {kind!r}{what} is not supported; known: {known}")
    usual = _HF_USUAL[family]
    vision = _Section(content.get("vision_config") or {}, source, "vision_config")
    text = _Section(content.get("text_config") or {}, source, "text_config")
    if (channels := vision.take("num_channels", 3)) != 3:
        raise vision.error(f"num_channels = {channels!r} is not supported; photos have three")
    for key, wanted in (("vision_use_head", True), ("use_swiglu_ffn", False), ("qkv_bias", True)):
        if vision.take(key, wanted) is not wanted:
            raise vision.error(f"{key} = {not wanted} is not supported")
    if text.take("scale_sqrt_depth", True) is not True:
        raise text.error("scale_sqrt_depth = False is not supported")
    projection = content.get("projection_dim") if family in ("clip", "metaclip2") else None
    sizes = {
        "embed_dim": projection if type(projection) is int else None,
        "image_size": _square(vision, "image_size"),
        "patch_size": _square(vision, "patch_size"),
        "vision_width": vision.whole("hidden_size"),
        "vision_layers": vision.whole("num_hidden_layers"),
        "registers": vision.take("num_register_tokens"),
        "context_length": text.whole("max_position_embeddings"),
        "vocab_size": text.whole("vocab_size"),
        "text_width": text.whole("hidden_size"),
        "text_layers": text.whole("num_hidden_layers"),
    }
    details = {
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
    elif family == "clip" and type(end) is int and end != 2 and end < (sizes["vocab_size"] or 49408):
        details["end_token"] = end  # 2 is an old way to write "the highest id"
    pad = text.take("pad_token_id")
    tokenizer = {"pad_id": pad} if type(pad) is int else {}
    return ModelConfig(source, family, _given(sizes), details, _hugging_face_pixels(source.parent), tokenizer)


@dataclass(frozen=True)
class _Processor:
    """What an image processor takes for a field that the file leaves out."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    square: bool
    resample: int = 3
    normalize: bool = True


_CLIP_PIXELS = _Processor((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), square=False)
_HALF_PIXELS = _Processor((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), square=True)
_HF_PROCESSORS = {
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


def _hugging_face_pixels(folder: Path) -> dict[str, Any]:
    """Fields of `Preprocess` from `preprocessor_config.json`, or from a whole processor's file."""
    for name in PROCESSORS:
        content = _load(folder / name)
        content = content.get("image_processor", {}) if name == "processor_config.json" else content
        if content:
            return _processor_pixels(_Section(content, folder / name, "image processor"))
    return {}


def _processor_pixels(section: "_Section") -> dict[str, Any]:
    kind = section.content.get("image_processor_type") or section.content.get("feature_extractor_type")
    plain = str(kind or "CLIPImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if plain not in _HF_PROCESSORS:
        raise section.error(f"{kind} is not supported; known: {', '.join(_HF_PROCESSORS)}")
    usual = _HF_PROCESSORS[plain]
    if not section.flag("do_resize", True):
        raise section.error("do_resize = False is not supported: photos have all sizes")
    pixels: dict[str, Any] = {"interpolation": _choice(section, "resample", {2: "bilinear", 3: "bicubic"})}
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
    mean, std = (_three(section, key) for key in ("image_mean", "image_std"))
    if section.flag("do_normalize", usual.normalize):
        mean, std = mean or usual.mean, std or usual.std
    else:
        mean, std = (0.0,) * 3, (1.0,) * 3
    # Values in [0, 1] are first multiplied by the scale.
    pixels |= {"mean": tuple(m / scale for m in mean), "std": tuple(s / scale for s in std)}
    section.only(*_PROCESSOR_NOTES)
    return _given(pixels)


def _processor_size(section: "_Section", square: bool) -> tuple[bool, int | None]:
    """Whether photos are squashed, and the side that they are resized to."""
    size = section.take("size")
    if size is None:
        return square, 224
    if type(size) is int:
        return square, size
    if isinstance(size, Mapping):
        if size.keys() == {"shortest_edge"}:
            return False, size["shortest_edge"]
        if size.keys() == {"height", "width"} and size["height"] == size["width"]:
            return True, size["height"]
    raise section.error(f"size = {size!r} is not supported; known: a shortest edge, or the same height and width")


def _processor_crop(section: "_Section", size: int | None) -> int | None:
    crop = section.take("crop_size")
    if isinstance(crop, Mapping) and crop.keys() == {"height", "width"} and crop["height"] == crop["width"]:
        return int(crop["height"])
    if crop is None:
        return size
    if type(crop) is int:
        return crop
    raise section.error(f"crop_size = {crop!r} is not supported; known: the same height and width")
