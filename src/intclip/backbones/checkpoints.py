"""Load state dicts in any known layout strictly into a backbone."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Activation, Architecture, Split, infer_architecture
from intclip.backbones.clip import ClipBackbone
from intclip.backbones.families import TRAITS
from intclip.backbones.file_tokenizer import TextTokenizer
from intclip.backbones.layouts import NO_WEIGHT, Rules, rename, to_openai_layout
from intclip.backbones.tokenizer import CLIP_TOKENS
from intclip.errors import CheckpointError, listed

TIPS_TEMPERATURE = 0.005065968260169029
"""From the configuration of published TIPS v2 weights."""

_OURS_TO_OPENAI: Rules = (
    (r"trunk\.stem\.(\d)", r"visual.stem.\1"),
    (r"trunk\.stem\.", "visual."),
    (r"trunk\.embedding\.", "visual."),
    (r"(?:trunk|deep)\.block(\d+)\.", r"visual.transformer.resblocks.\1."),
    (r"(?:trunk|deep)\.(layer\d|final)\.", r"visual.\1."),
    (r"head\.(ln_post\.|proj$|proj_bias$|attn_pool\.|fc\.)", r"visual.\1"),
    (r"head\.", "visual.attnpool."),
    (r"text\.blocks\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"text\.", ""),
)


def from_openai_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    split: Split = "paper",
    activation: Activation | None = None,
    vision_heads: int | None = None,
    text_heads: int | None = None,
    name: str | None = None,
) -> ClipBackbone:
    """Build a backbone from a state dict: a ModifiedResNet or a ViT, of any width and depth.

    Args:
        state_dict: In the layout of OpenAI, open_clip or Hugging Face, of any floating-point type; it is copied.
        split: Where the trunk ends; see `ClipBackbone`.
        activation: "gelu" for open_clip's LAION weights (it cannot be inferred from them); None means the family's
            default, which for CLIP is OpenAI's "quick_gelu".
        vision_heads: Attention heads of a ViT; None means width / 64.
        text_heads: Attention heads of the text transformer; None means width / 64.
        name: Name of the backbone; default: the architecture's.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshapen (all are named), or the text tower's vocabulary
            differs from CLIP's.
    """
    state = to_openai_layout(state_dict)
    given = {"vision_heads": vision_heads, "text_heads": text_heads, "activation": activation}
    found = infer_architecture(state)
    details = family_details(found) | {key: value for key, value in given.items() if value is not None}
    return build_clip(found.with_details(details), state, split=split, name=name)


def family_details(architecture: Architecture) -> dict[str, Any]:
    """Return a family's defaults."""
    traits = TRAITS[architecture.family]
    return {
        "activation": traits.activation,
        "text_activation": traits.text_activation,
        "vision_eps": traits.vision_eps,
        "text_eps": traits.text_eps,
    }


def build_clip(
    architecture: Architecture,
    state: Mapping[str, Tensor],
    *,
    split: Split = "paper",
    name: str | None = None,
    tokenizer: TextTokenizer | None = None,
) -> ClipBackbone:
    """Build a frozen backbone with these weights, float32.

    Args:
        architecture: Sizes.
        state: With OpenAI's key names; copied.
        split: Where the trunk ends; see `ClipBackbone`.
        name: Name of the backbone; default: the architecture's.
        tokenizer: For a family that does not use CLIP's tokens.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshapen (all are named), or the text tower's vocabulary
            differs from its family's tokenizer.
    """
    if TRAITS[architecture.family].own_tokens and architecture.vocab_size > CLIP_TOKENS:
        raise CheckpointError(
            f"the text tower has a vocabulary of {architecture.vocab_size:,} tokens, CLIP's tokenizer has"
            f" {CLIP_TOKENS:,}: texts would be misread; supported with other tokenizers: MetaCLIP 2, "
            "SigLIP and TIPS v2, with config.json and tokenizer.json next to the weights"
        )
    with torch.device("meta"):
        backbone = ClipBackbone(architecture, split, name, tokenizer)
    state = _with_defaults(architecture, state)
    wanted = {openai_key(key): (key, tensor) for key, tensor in backbone.state_dict().items()}
    wanted = {key: entry for key, entry in wanted.items() if not NO_WEIGHT.match(key)}
    _compare(architecture, {key: tensor for key, (_, tensor) in wanted.items()}, state)
    loaded = {
        ours: state[key].detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        for key, (ours, _) in wanted.items()
    }
    for ours, module in backbone.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            loaded[f"{ours}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    backbone.load_state_dict(loaded, strict=True, assign=True)
    backbone.freeze()
    return backbone


def openai_state_dict(backbone: ClipBackbone) -> dict[str, Tensor]:
    """Return a backbone's weights with OpenAI's key names; they share its memory."""
    return {openai_key(key): tensor for key, tensor in backbone.state_dict().items()}


def openai_key(key: str) -> str:
    """Return OpenAI's name of one of `ClipBackbone`'s tensors."""
    return rename(key, _OURS_TO_OPENAI)


def _with_defaults(architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reshape scalars, and add TIPS's temperature, which published weights lack, as a scale."""
    out = dict(state)
    if architecture.family == "tipsv2":
        temperature = out.pop("temperature", torch.tensor(TIPS_TEMPERATURE))
        out["logit_scale"] = torch.tensor(-math.log(float(temperature)))
    for key in ("logit_scale", "logit_bias"):
        if key in out and out[key].numel() == 1:
            out[key] = out[key].reshape(())
    if architecture.family == "pe" and "visual.proj_bias" in out and not out["visual.proj_bias"].any():
        del out["visual.proj_bias"]  # timm's linear layer has one, always 0: Meta's weights have a matrix
    return out


def _compare(architecture: Architecture, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise unless a state matches exactly."""
    faults = []
    if missing := sorted(wanted.keys() - state.keys()):
        faults.append(f"missing: {listed(missing)}")
    if extra := sorted(state.keys() - wanted.keys()):
        faults.append(f"unexpected: {listed(extra)}")
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    if shapes:
        faults.append(f"wrong shape: {listed(shapes)}")
    if faults:
        raise CheckpointError(f"the checkpoint does not fit {architecture.label}; {'; '.join(faults)}")
