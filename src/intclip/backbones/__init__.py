"""Image and text towers with a common contract.

Names are imported on first use, so that `intclip.backbones.preprocess` does not need torch.
"""

from typing import TYPE_CHECKING

from intclip.lazy import lazy_names

if TYPE_CHECKING:
    from intclip.backbones.base import Backbone, Features, ImageHead, TextTower
    from intclip.backbones.checkpoints import from_openai_state_dict
    from intclip.backbones.clip import ClipBackbone
    from intclip.backbones.preprocess import Preprocess
    from intclip.backbones.registry import backbone_names, load_backbone, random_backbone
    from intclip.backbones.tokenizer import tokenize

__all__ = [
    "Backbone",
    "ClipBackbone",
    "Features",
    "ImageHead",
    "Preprocess",
    "TextTower",
    "backbone_names",
    "from_openai_state_dict",
    "load_backbone",
    "random_backbone",
    "tokenize",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Backbone": "base",
        "ClipBackbone": "clip",
        "Features": "base",
        "ImageHead": "base",
        "Preprocess": "preprocess",
        "TextTower": "base",
        "backbone_names": "registry",
        "from_openai_state_dict": "checkpoints",
        "load_backbone": "registry",
        "random_backbone": "registry",
        "tokenize": "tokenizer",
    },
)
