"""Properties of a model that its weights do not show, from the JSON files beside them.

They are family, activation, heads and preprocessing. Every setting that affects the output is either applied or
rejected. Supported are open_clip's `open_clip_config.json`, and Hugging Face's `config.json` with
`preprocessor_config.json`.
"""

from pathlib import Path
from typing import Literal

from intclip.backbones.config_section import ModelConfig, read_object
from intclip.backbones.hugging_face_config import hugging_face_config, hugging_face_pixels
from intclip.backbones.open_clip_config import open_clip_config
from intclip.backbones.weight_files import HUGGING_FACE, OPEN_CLIP

Layout = Literal["open_clip", "hugging_face"]


def read_config(weights: Path, layout: Layout) -> ModelConfig:
    """Read the configuration beside a weight file; files of its own layout take precedence.

    Args:
        weights: The weight file, whose folder is searched.
        layout: Layout of the weights.

    Raises:
        CheckpointError: A file is not JSON or has an unsupported setting; both are named.
    """
    open_clip, hugging_face = (read_object(weights.parent / name) for name in (OPEN_CLIP, HUGGING_FACE))
    if "model_cfg" in hugging_face and not open_clip:
        open_clip, hugging_face = hugging_face, {}
    name = OPEN_CLIP if (weights.parent / OPEN_CLIP).is_file() else HUGGING_FACE
    found: dict[Layout, ModelConfig] = {}
    if "model_cfg" in open_clip:
        found["open_clip"] = open_clip_config(open_clip, weights.parent / name)
    if {"vision_config", "text_config", "model_type"} & hugging_face.keys():
        found["hugging_face"] = hugging_face_config(hugging_face, weights.parent / HUGGING_FACE)
    for kind in (layout, *found):
        if kind in found:
            return found[kind]
    return ModelConfig(pixels=hugging_face_pixels(weights.parent))
