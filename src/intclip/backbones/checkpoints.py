"""State dicts of CLIP in three layouts, told by their keys, loaded strictly into our backbone.

OpenAI's layout is the hub of the wheel: open_clip's and Hugging Face's are translated to it, and our own module names
are translated to it, in both directions, by a few prefixes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from intclip.backbones.architecture import Activation, Architecture, Split, infer_architecture, with_heads
from intclip.backbones.clip import ClipBackbone
from intclip.errors import CheckpointError

# What checkpoints carry that is no weight: sizes in OpenAI's archives, masks, position numbers, BatchNorm's counter.
_NO_WEIGHT = re.compile(
    r"input_resolution$|context_length$|vocab_size$|.*\battn_mask$|.*\bposition_ids$|.*\bnum_batches_tracked$"
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_SHOWN = 12

_OURS_TO_OPENAI = (
    (r"trunk\.stem\.", "visual."),
    (r"trunk\.embedding\.", "visual."),
    (r"(?:trunk|deep)\.block(\d+)\.", r"visual.transformer.resblocks.\1."),
    (r"(?:trunk|deep)\.layer(\d)\.", r"visual.layer\1."),
    (r"head\.(ln_post\.|proj$)", r"visual.\1"),
    (r"head\.", "visual.attnpool."),
    (r"text\.blocks\.(\d+)\.", r"transformer.resblocks.\1."),
    (r"text\.", ""),
    (r"logit_scale$", "logit_scale"),
)
_HF_TO_OPENAI = (
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"visual_projection\.weight$", "visual.proj"),
    (r"text_projection\.weight$", "text_projection"),
)
_HF_BLOCK_PARTS = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_HF_QUERY = re.compile(r"(.*)\.self_attn\.q_proj\.(weight|bias)$")


def from_openai_state_dict(
    state_dict: Mapping[str, Tensor],
    *,
    split: Split = "paper",
    activation: Activation = "quick_gelu",
    vision_heads: int | None = None,
    text_heads: int | None = None,
    name: str | None = None,
) -> ClipBackbone:
    """Build the CLIP that a state dict belongs to: a ModifiedResNet or a ViT, of any width and depth.

    Args:
        state_dict: In the layout of OpenAI, open_clip or Hugging Face's `CLIPModel`, of any float type; it is copied.
        split: Where the trunk ends; see `ClipBackbone`.
        activation: "gelu" for open_clip's LAION weights; the weights do not tell.
        vision_heads: Attention heads of a ViT; None means width / 64.
        text_heads: Attention heads of the text transformer; None means width / 64.
        name: Name of the backbone; without one, that of the architecture.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape; all are named.
    """
    state = to_openai_layout(state_dict)
    architecture = with_heads(replace(infer_architecture(state), activation=activation), vision_heads, text_heads)
    return build_clip(architecture, state, split=split, name=name)


def build_clip(
    architecture: Architecture, state: Mapping[str, Tensor], *, split: Split = "paper", name: str | None = None
) -> ClipBackbone:
    """A frozen CLIP with these weights, float32.

    Args:
        architecture: Sizes.
        state: In OpenAI's layout; copied.
        split: Where the trunk ends; see `ClipBackbone`.
        name: Name of the backbone; without one, that of the architecture.

    Raises:
        CheckpointError: A tensor is missing, left over, or of another shape; all are named.
    """
    with torch.device("meta"):
        backbone = ClipBackbone(architecture, split, name)
    wanted = {openai_key(key): (key, tensor) for key, tensor in backbone.state_dict().items()}
    wanted = {key: entry for key, entry in wanted.items() if not _NO_WEIGHT.match(key)}
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
    """The weights of a backbone under OpenAI's key names; shares memory with it."""
    return {openai_key(key): tensor for key, tensor in backbone.state_dict().items()}


def openai_key(key: str) -> str:
    """OpenAI's name of one of `ClipBackbone`'s tensors."""
    return _rename(key, _OURS_TO_OPENAI)


def to_openai_layout(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Weights under OpenAI's key names, from any of the three layouts, unwrapped, without what is no weight.

    Raises:
        CheckpointError: This is no state dict of a CLIP.
    """
    state = _unwrap(state_dict)
    state = {key: tensor for key, tensor in state.items() if not _NO_WEIGHT.match(key)}
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        return _from_hugging_face(state)
    if any(key.startswith("visual.") for key in state):
        # open_clip's CustomTextCLIP keeps the text tower under "text."; otherwise its names are OpenAI's.
        return {key.removeprefix("text."): tensor for key, tensor in state.items()}
    raise CheckpointError(
        f"this is no CLIP checkpoint in the layout of OpenAI, open_clip or Hugging Face; it has {_listed(state)}"
    )


def _unwrap(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a state dict, out of a training checkpoint and of a parallel wrapper's "module." prefix."""
    inner: Mapping[str, object] = state_dict
    for wrapper in _WRAPPERS:
        found = inner.get(wrapper)
        if isinstance(found, Mapping):
            inner = found
    others = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if others or not inner:
        raise CheckpointError(f"a state dict of tensors is wanted; this one has {_listed(others) or 'nothing in it'}")
    tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    merged: set[str] = set()
    for key in state:
        if match := _HF_QUERY.match(key):
            parts = [f"{match[1]}.self_attn.{part}_proj.{match[2]}" for part in "qkv"]
            if all(part in state for part in parts):
                merged.update(parts)
                out[f"{_hf_key(match[1])}.attn.in_proj_{match[2]}"] = torch.cat([state[part] for part in parts])
    for key, tensor in state.items():
        if key not in merged:
            name = _hf_key(key)
            out[name] = tensor.T if name in ("visual.proj", "text_projection") else tensor
    return out


def _hf_key(key: str) -> str:
    key = _rename(key, _HF_TO_OPENAI)
    for theirs, openai in _HF_BLOCK_PARTS:
        key = key.replace(theirs, openai)
    return key


def _rename(key: str, rules: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        renamed, hits = re.subn(f"^{pattern}", replacement, key)
        if hits:
            return renamed
    return key


def _compare(architecture: Architecture, wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse a state that is not exactly what is wanted."""
    faults = []
    if missing := sorted(wanted.keys() - state.keys()):
        faults.append(f"missing: {_listed(missing)}")
    if extra := sorted(state.keys() - wanted.keys()):
        faults.append(f"left over: {_listed(extra)}")
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & state.keys())
        if state[key].shape != wanted[key].shape
    ]
    if shapes:
        faults.append(f"wrong shape: {_listed(shapes)}")
    if faults:
        raise CheckpointError(f"the checkpoint does not fit {architecture.label}; {'; '.join(faults)}")


def _listed(names: Iterable[str]) -> str:
    """Names in one line; a long list is cut and counted."""
    names = list(names)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
