"""What the JSON files beside a checkpoint say that its weights do not show: family, activation, heads, pixels.

Everything that decides the numbers is read or refused. Two kinds of files are known: open_clip's
`open_clip_config.json`, and Hugging Face's `config.json` with `preprocessor_config.json`.
"""

from pathlib import Path
from typing import Literal

from intclip.backbones.config_section import ModelConfig, read_object
from intclip.backbones.hugging_face_config import hugging_face_config, hugging_face_pixels
from intclip.backbones.open_clip_config import open_clip_config
from intclip.backbones.weight_files import HUGGING_FACE, OPEN_CLIP

Layout = Literal["open_clip", "hugging_face"]


def read_config(weights: Path, layout: Layout) -> ModelConfig:
    """What lies beside a weight file, the files of its own layout before the other's.

    Args:
        weights: The file; its folder is looked at.
        layout: Of the weights.

    Raises:
        CheckpointError: A file is not JSON, or it asks for something that is not supported; both are named.
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
