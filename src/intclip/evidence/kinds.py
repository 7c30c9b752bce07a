"""Kinds of evidence: region logits, coarse or fine, positive or negative prompt, Grad-CAM, rollout."""

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from intclip.errors import IntclipError
from intclip.evidence.views import join_views, photo_views
from intclip.methods.base import Method
from intclip.methods.prompts import NEGATIVE, POSITIVE
from intclip.methods.region_pooling import HALVES_PREFIX

Kind = Literal["regions", "fine", "positive", "negative", "gradcam", "rollout"]
"""regions: the model's own map, mostly the logit that each region would give on its own; one forward pass, any engine.
fine: these logits averaged over the photo and its enlarged parts; see `views`; ten passes, any engine.
positive, negative: similarity of each region to only the label's positive or negative prompt.
gradcam: see `gradcam`; any method whose logit depends on a feature map.
rollout: see `rollout`; a ViT."""
KINDS: tuple[Kind, ...] = get_args(Kind)


def check_kind(kind: str) -> Kind:
    """Validate a kind.

    Raises:
        IntclipError: The kind is unknown.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise IntclipError(f"unknown kind of evidence {kind!r}; choose {', '.join(KINDS)}")


def maps_of_kind(
    method: Method, pixels: npt.NDArray[np.float32], index: int, kind: Kind
) -> dict[str, npt.NDArray[np.float32]]:
    """Compute maps (h, w) of a label by branch, unscaled, in torch; (4h, 4w) for kind "fine".

    Args:
        method: In evaluation mode.
        pixels: Normalised (1, 3, S, S).
        index: Index of the label.
        kind: See `Kind`.

    Raises:
        IntclipError: The method or its backbone does not support this kind.
        MissingExtraError: Grad-CAM without captum.
    """
    method.eval()
    if kind == "fine":
        pixels = photo_views(pixels[0])
    tensor = torch.from_numpy(pixels).to(next(method.parameters()).device)
    if kind == "gradcam":
        from intclip.evidence.gradcam import gradcam

        return gradcam(method, tensor, index)
    if kind == "rollout":
        from intclip.evidence.rollout import rollout

        return rollout(method, tensor, index)
    with torch.no_grad():
        output = method(method.backbone.features(tensor, method.needs), maps=True)
    if kind in ("regions", "fine"):
        maps = {name: value[:, index].float().cpu().numpy() for name, value in output.maps.items()}
        return {name: join_views(value) if kind == "fine" else value[0] for name, value in maps.items()}
    half = POSITIVE if kind == "positive" else NEGATIVE
    found = {
        name.removeprefix(HALVES_PREFIX): value[0, half, index].float().cpu().numpy()
        for name, value in output.extras.items()
        if name.startswith(HALVES_PREFIX)
    }
    if not found:
        raise IntclipError("this method has no pairs of prompts, as intclip and dualcoop have; use regions or gradcam")
    return found
