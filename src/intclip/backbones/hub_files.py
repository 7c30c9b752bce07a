"""Hub locations of the named backbones' weights. A pin of None is not known for certain; see `hub`."""

from typing import NamedTuple

from intclip.backbones.hub import HubFile

_SAFE, _BIN, _HF = "open_clip_model.safetensors", "pytorch_model.bin", "model.safetensors"

OPENAI_FILES: dict[str, HubFile] = {
    "RN50": HubFile(
        "timm/resnet50_clip.openai",
        _SAFE,
        "ec3d92cf63a5f9d591f0d611b736895966c73076",
        "da0baa37fb2211eee5729ab69ed587eb10d48f5b7076ceeed01552fc3d4cb4ee",
    ),
    "RN101": HubFile("timm/resnet101_clip.openai", _SAFE),
    "RN50x4": HubFile(
        "timm/resnet50x4_clip.openai", _SAFE, None, "fcd5a494550d0951f314a9d74225887e727ddc20c28c78962b58464705bfb465"
    ),
    "RN50x16": HubFile("timm/resnet50x16_clip.openai", _SAFE),
    "RN50x64": HubFile("timm/resnet50x64_clip.openai", _SAFE),
    "ViT-B/32": HubFile(
        "openai/clip-vit-base-patch32",
        _BIN,
        "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268",
        "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
    "ViT-B/16": HubFile(
        "openai/clip-vit-base-patch16",
        _BIN,
        "57c216476eefef5ab752ec549e440a49ae4ae5f3",
        "ec89c7b09c749a60aae3c9cd910516f24b58214a7df060b48962d14c469cfbf0",
    ),
    "ViT-L/14": HubFile(
        "openai/clip-vit-large-patch14",
        "model.safetensors",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    ),
    "ViT-L/14@336px": HubFile(
        "openai/clip-vit-large-patch14-336",
        _BIN,
        "ce19dc912ca5cd21c8a653c79e251e808ccabcd1",
        "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
    ),
}
"""OpenAI's models; these files are sufficient."""

REPOSITORIES: dict[str, HubFile] = {
    "ViT-H/14": HubFile("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", _SAFE),
    "MetaCLIP2-H/14": HubFile("facebook/metaclip-2-worldwide-huge-quickgelu", _HF),
    "SigLIP-B/16": HubFile("google/siglip-base-patch16-224", _HF),
    "SigLIP-L/16@256px": HubFile("google/siglip-large-patch16-256", _HF),
    "SigLIP-SO400M/14@384px": HubFile("google/siglip-so400m-patch14-384", _HF),
    "SigLIP2-B/32@256px": HubFile("google/siglip2-base-patch32-256", _HF),
    "SigLIP2-B/16": HubFile("google/siglip2-base-patch16-224", _HF),
    "SigLIP2-L/16@256px": HubFile("google/siglip2-large-patch16-256", _HF),
    "SigLIP2-SO400M/14": HubFile("google/siglip2-so400m-patch14-224", _HF),
    "EVA02-B/16": HubFile("timm/eva02_base_patch16_clip_224.merged2b_s8b_b131k", _SAFE),
    "EVA02-L/14": HubFile("timm/eva02_large_patch14_clip_224.merged2b_s4b_b131k", _SAFE),
    "PE-B/16": HubFile("timm/PE-Core-B-16", _SAFE),
    "PE-L/14@336px": HubFile("timm/PE-Core-L-14-336", _SAFE),
    "MobileCLIP2-S0": HubFile("timm/MobileCLIP2-S0-OpenCLIP", _SAFE, "095906d28bf54d7584dc411e8ffe448f34289e05"),
    "MobileCLIP2-S2": HubFile("timm/MobileCLIP2-S2-OpenCLIP", _SAFE),
    "MobileCLIP2-B": HubFile("timm/MobileCLIP2-B-OpenCLIP", _SAFE),
    "TIPSv2-B/14": HubFile("google/tipsv2-b14", _HF),
}
"""Other families; their configuration files are fetched as well."""

HUB_FILES: dict[str, HubFile] = OPENAI_FILES | REPOSITORIES


class Published(NamedTuple):
    """Facts for choosing a model before downloading it.

    Attributes:
        parameters: Millions.
        size: Side of the photo, in pixels.
        licence: Licence of the weights, as named by the publisher; see docs/THIRD_PARTY.md.
        languages: Languages that the text tower was trained on.
    """

    parameters: float
    size: int
    licence: str
    languages: str


PUBLISHED: dict[str, Published] = {
    "RN50": Published(102.0, 224, "MIT", "English"),
    "RN101": Published(119.7, 224, "MIT", "English"),
    "RN50x4": Published(178.3, 288, "MIT", "English"),
    "RN50x16": Published(291.0, 384, "MIT", "English"),
    "RN50x64": Published(623.3, 448, "MIT", "English"),
    "ViT-B/32": Published(151.3, 224, "MIT", "English"),
    "ViT-B/16": Published(149.6, 224, "MIT", "English"),
    "ViT-L/14": Published(427.6, 224, "MIT", "English"),
    "ViT-L/14@336px": Published(427.9, 336, "MIT", "English"),
    "ViT-H/14": Published(986.1, 224, "MIT", "English"),
    "MetaCLIP2-H/14": Published(1858.8, 224, "CC-BY-NC-4.0", "over 300 languages"),
    "SigLIP-B/16": Published(203.2, 224, "Apache-2.0", "English"),
    "SigLIP-L/16@256px": Published(652.2, 256, "Apache-2.0", "English"),
    "SigLIP-SO400M/14@384px": Published(878.0, 384, "Apache-2.0", "English"),
    "SigLIP2-B/32@256px": Published(376.9, 256, "Apache-2.0", "over 100 languages"),
    "SigLIP2-B/16": Published(375.2, 224, "Apache-2.0", "over 100 languages"),
    "SigLIP2-L/16@256px": Published(881.5, 256, "Apache-2.0", "over 100 languages"),
    "SigLIP2-SO400M/14": Published(1135.5, 224, "Apache-2.0", "over 100 languages"),
    "EVA02-B/16": Published(149.7, 224, "MIT", "English"),
    "EVA02-L/14": Published(427.8, 224, "MIT", "English"),
    "PE-B/16": Published(447.7, 224, "Apache-2.0", "English"),
    "PE-L/14@336px": Published(671.1, 336, "Apache-2.0", "English"),
    "MobileCLIP2-S0": Published(74.8, 256, "Apple AMLR (research only)", "English"),
    "MobileCLIP2-S2": Published(99.1, 256, "Apple AMLR (research only)", "English"),
    "MobileCLIP2-B": Published(149.8, 224, "Apple AMLR (research only)", "English"),
    "TIPSv2-B/14": Published(196.0, 448, "Apache-2.0", "English"),
}
"""Facts by name; tests verify the numbers of parameters."""
