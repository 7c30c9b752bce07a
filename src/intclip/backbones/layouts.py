"""Convert state dicts of Hugging Face, open_clip and timm (within open_clip) to OpenAI's key names.

    visual.conv1, visual.transformer.resblocks.0.attn.in_proj_weight, … transformer.resblocks.0.…, token_embedding, …

Parts that OpenAI's models lack are named in the same style: `visual.attn_pool.probe`, `….mlp.gate`, `….ls_1`,
`text_projection_bias`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from intclip.backbones.fastvit_fusion import fused
from intclip.errors import CheckpointError, listed

# Entries of checkpoints that are not weights: sizes in OpenAI's archives, masks, position ids, BatchNorm's counter,
# tables of rotary positions, and the mask token of TIPS's training.
NO_WEIGHT = re.compile(
    r"input_resolution$|context_length$|vocab_size$|.*\battn_mask$|.*\bposition_ids$|.*\bnum_batches_tracked$"
    r"|.*\brope\.|.*\.k_bias$|(?:vision_model\.embeddings|vision_encoder)\.mask_token$"
)
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
Rules = tuple[tuple[str, str], ...]
Source = Literal["open_clip", "hugging_face"]

_HF_TEXT: Rules = (
    (r"text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"text_model\.final_layer_norm\.", "ln_final."),
    (r"text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"text_projection\.weight$", "text_projection"),
    (r"text_model\.head\.weight$", "text_projection"),
    (r"text_model\.head\.bias$", "text_projection_bias"),
)
_HF_IMAGE: Rules = (
    (r"vision_model\.embeddings\.(?:class_embedding|cls_token)$", "visual.class_embedding"),
    (r"vision_model\.embeddings\.register_tokens$", "visual.registers"),
    (r"vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"vision_model\.embeddings\.patch_embeddings\.projection\.", "visual.conv1."),
    (r"vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"vision_model\.embeddings\.position_embeddings$", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"vision_model\.(?:post_layernorm|layernorm)\.", "visual.ln_post."),
    (r"vision_model\.encoder\.layers?\.", "visual.transformer.resblocks."),
    (r"vision_model\.head\.attention\.", "visual.attn_pool."),
    (r"vision_model\.head\.", "visual.attn_pool."),
    (r"visual_projection\.weight$", "visual.proj"),
)
_TIMM: Rules = (
    (r"visual\.trunk\.patch_embed\.proj\.", "visual.conv1."),
    (r"visual\.trunk\.patch_embed\.backbone\.(\d+)\.(?:conv\.)?", r"visual.conv1.\1."),
    (r"visual\.trunk\.pos_embed$", "visual.positional_embedding"),
    (r"visual\.trunk\.cls_token$", "visual.class_embedding"),
    (r"visual\.trunk\.register_tokens$", "visual.registers"),
    (r"visual\.trunk\.norm_pre\.", "visual.ln_pre."),
    (r"visual\.trunk\.norm\.", "visual.ln_post."),
    (r"visual\.trunk\.blocks\.", "visual.transformer.resblocks."),
    (r"visual\.trunk\.attn_pool\.latent$", "visual.attn_pool.probe"),
    (r"visual\.trunk\.attn_pool\.norm\.", "visual.attn_pool.layernorm."),
    (r"visual\.trunk\.attn_pool\.proj\.", "visual.attn_pool.out_proj."),
    (r"visual\.trunk\.attn_pool\.", "visual.attn_pool."),
    (r"visual\.trunk\.head\.weight$", "visual.proj"),
    (r"visual\.trunk\.head\.bias$", "visual.proj_bias"),
)
_FASTVIT: Rules = (
    (r"visual\.trunk\.stem\.", "visual.stem."),
    (r"visual\.trunk\.stages\.0\.", "visual.layer1."),
    (r"visual\.trunk\.stages\.1\.", "visual.layer2."),
    (r"visual\.trunk\.stages\.2\.", "visual.layer3."),
    (r"visual\.trunk\.stages\.3\.", "visual.layer4."),
    (r"visual\.trunk\.final_conv\.", "visual.final."),
    (r"visual\.trunk\.head\.fc\.", "visual.fc."),
)
_FASTVIT_PARTS = (
    (r"\.blocks\.(\d+)\.token_mixer\.qkv\.", r".\1.attn.in_proj_"),
    (r"\.blocks\.(\d+)\.token_mixer\.proj\.", r".\1.attn.out_proj."),
    (r"\.blocks\.(\d+)\.token_mixer\.", r".\1.mixer."),
    (r"\.blocks\.(\d+)\.", r".\1."),
    (r"\.downsample\.proj\.", ".downsample."),
    (r"\.pos_emb\.", ".position."),
)
_META: Rules = ((r"visual\.attn_pool\.attn\.", "visual.attn_pool."),)
_PARTS = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".attention.o_proj.", ".attn.out_proj."),
    (".attn.proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".layer_scale1.lambda1", ".ls_1.weight"),
    (".ls1.gamma", ".ls_1.weight"),
    (".ls2.gamma", ".ls_2.weight"),
    (".layer_scale2.lambda1", ".ls_2.weight"),
    (".mlp.fc1_g.", ".mlp.gate."),
    (".mlp.fc1_x.", ".mlp.c_fc."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
    (".attn.qkv.", ".attn.in_proj_"),
)
_MOBILE = ("visual.trunk.stem.", "visual.trunk.patch_embed.backbone.")
_MATRICES = ("visual.proj", "text_projection")
_HF_QUERY = re.compile(r"(.*)\.(?:self_attn|attention|attn)\.q_proj\.(weight|bias)$")
_TIMM_QUERY = re.compile(r"(visual\.trunk\.attn_pool)\.q\.(weight|bias)$")
# Unsupported families, each by a key that only it has.
_OTHERS = (
    (
        r"visual\.trunk\.(?:stages\.4|stem\.0\.(?:conv|0))\.",
        "a convolutional tower of another kind (MobileCLIP 2 S3, S4)",
    ),
    (r"image_encoder\.model\.", "MobileCLIP in the layout of its authors' first version: take the one for OpenCLIP"),
    (r"visual\.trunk\.blocks\.\d+\.(?:attn\.q_bias|gamma_1|ls1)", "a timm image tower of another kind (EVA-01, DINO)"),
    (r"visual\.blocks\.0\.attn\.(?:q_bias|inner_attn_ln)", "EVA-CLIP in its authors' own layout"),
    (r"text_model\.encoder\.layer\.|text\.transformer\.(?:encoder|embeddings)", "a text tower of BERT's kind"),
    (r"text_decoder\.", "CoCa"),
    (r"visual_encoder\.|qformer\.", "BLIP or ALBEF"),
)


def to_openai_layout(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the weights of any layout with OpenAI's key names, unwrapped, without entries that are not weights.

    Raises:
        CheckpointError: Not a state dict of image and text towers; an unsupported family is named.
    """
    state = {key: tensor for key, tensor in unwrap(state_dict).items() if not NO_WEIGHT.match(key)}
    if family := other_family(state):
        raise CheckpointError(f"this is the checkpoint of {family}, which is not supported")
    if any(key.startswith(("text_model.", "vision_model.")) for key in state):
        return _from_hugging_face(state)
    if any(key.startswith("vision_encoder.") for key in state):  # TIPS as published: timm's names beside OpenAI's
        state = _renamed(state, ((r"vision_encoder\.", "visual.trunk."), (r"text_encoder\.", "")))
    if any(key.startswith("visual.trunk.") for key in state):
        return _from_timm(state)
    if any(key.startswith("visual.") for key in state):
        return _bare_text(_renamed(state, _META))
    raise CheckpointError(
        "this is not a checkpoint in the layout of OpenAI, open_clip or Hugging Face with an image and a text tower;"
        f" it has {listed(state)}"
    )


def source_of(state: Iterable[str]) -> Source:
    """Return the layout of these key names."""
    names = ("text_model.", "vision_model.", "vision_encoder.")
    return "hugging_face" if any(key.startswith(names) for key in state) else "open_clip"


def other_family(state: Iterable[str]) -> str | None:
    """Return the known but unsupported family of these keys, if any."""
    keys = list(state)
    return next((family for pattern, family in _OTHERS if any(re.match(pattern, key) for key in keys)), None)


def unwrap(state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """Extract a state dict from a training checkpoint, and remove a parallel wrapper's "module." prefix."""
    inner: Mapping[str, object] = state_dict
    for wrapper in _WRAPPERS:
        found = inner.get(wrapper)
        if isinstance(found, Mapping):
            inner = found
    others = [key for key, value in inner.items() if not isinstance(value, Tensor)]
    if others or not inner:
        raise CheckpointError(
            f"expected a state dict of tensors; this one has {listed(others) if others else 'nothing in it'}"
        )
    tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
    if all(key.startswith("module.") for key in tensors):
        return {key.removeprefix("module."): value for key, value in tensors.items()}
    return tensors


def rename(key: str, rules: Iterable[tuple[str, str]]) -> str:
    """Apply the first rule whose pattern matches the start of the key."""
    for pattern, replacement in rules:
        renamed, hits = re.subn(f"^{pattern}", replacement, key)
        if hits:
            return renamed
    return key


def _from_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = _named(_joined(state, _HF_QUERY, "qkv", "{}_proj", whole=True), (*_HF_TEXT, *_HF_IMAGE))
    return _without_batch(out)


def _from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if any(key.startswith(_MOBILE) for key in state):
        prefix = "visual.trunk."
        inner = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        text = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
        state = text | {prefix + key: tensor for key, tensor in fused(inner).items()}
        if any(key.startswith("visual.trunk.stem.") for key in state):
            return _bare_text({_fastvit(key): tensor for key, tensor in state.items()})
    joined = _joined(_joined(state, _HF_QUERY, "qkv", "{}_proj"), _TIMM_QUERY, ("q", "kv"), "{}")
    out = _bare_text(_named(joined, _TIMM))
    out = _without_batch(out)
    if "text_projection.weight" in out:  # a linear layer instead of OpenAI's matrix
        out["text_projection"] = out.pop("text_projection.weight").T
        out["text_projection_bias"] = out.pop("text_projection.bias")
    return out


def _fastvit(key: str) -> str:
    """Convert a key of FastViT's image tower, by its stage."""
    key = rename(key, _FASTVIT)
    for pattern, replacement in _FASTVIT_PARTS if key.startswith("visual.") else ():
        key, hits = re.subn(pattern, replacement, key)
        if hits:
            break
    return key


def _without_batch(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the batch dimension of tokens and positions, as in OpenAI's layout."""
    for key in ("visual.class_embedding", "visual.positional_embedding", "visual.registers"):
        if key in state:
            shape = state[key].shape
            state[key] = state[key].reshape(shape[-1] if key == "visual.class_embedding" else shape[-2:])
    return state


def _bare_text(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the "text." prefix of open_clip's CustomTextCLIP, whose names are otherwise OpenAI's."""
    return {key.removeprefix("text."): tensor for key, tensor in state.items()}


def _joined(
    state: Mapping[str, Tensor], query: re.Pattern[str], parts: Iterable[str], form: str, *, whole: bool = False
) -> dict[str, Tensor]:
    """Concatenate separate queries, keys and values to one "….attn.in_proj_weight" or bias.

    Unless all are required, a missing bias is 0: EVA-02's keys have none.
    """
    out = dict(state)
    for key in state:
        if not (match := query.match(key)):
            continue
        prefix = key[: key.rindex(".", 0, key.rindex("."))]
        names = [f"{prefix}.{form.format(part)}.{match[2]}" for part in parts]
        if not whole and match[2] == "bias" and (lacking := [name for name in names if name not in state]):
            like = state[key]
            out |= {name: torch.zeros_like(like) for name in lacking if name.replace("bias", "weight") in state}
        if all(name in out for name in names):
            attention = f"{match[1]}.attn" if query is _HF_QUERY else match[1]
            out[f"{attention}.in_proj_{match[2]}"] = torch.cat([out.pop(name) for name in names])
    return out


def _named(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = rename(key, rules)
        for theirs, openai in _PARTS:
            name = name.replace(theirs, openai)
        out[name] = tensor.T if name in _MATRICES and name != key else tensor
    return out


def _renamed(state: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    return {rename(key, rules): tensor for key, tensor in state.items()}
