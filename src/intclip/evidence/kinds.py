"""Kinds of evidence: the model's own region logits, coarse or fine, its two prompts apart, Grad-CAM, rollout."""

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
"""regions: the logit each region would give alone; exact, one forward pass, any engine.
fine: these logits of the photo and of its enlarged parts, averaged; see `views`; ten passes, any engine.
positive, negative: similarity of each region to the label's positive or negative prompt alone.
gradcam: see `gradcam`; any method whose logit depends on a feature map.
rollout: see `rollout`; a ViT."""
KINDS: tuple[Kind, ...] = get_args(Kind)


def check_kind(kind: str) -> Kind:
    """The kind by its name.

    Raises:
        IntclipError: The kind is unknown.
    """
    for known in KINDS:
        if kind == known:
            return known
    raise IntclipError(f"no kind of evidence {kind!r}; choose {', '.join(KINDS)}")


def region_maps(
    method: Method, pixels: npt.NDArray[np.float32], index: int, kind: Kind
) -> dict[str, npt.NDArray[np.float32]]:
    """Maps (h, w) of one label by branch, not scaled, computed in torch; of kind "fine" (4h, 4w).

    Args:
        method: In evaluation mode.
        pixels: Normalised (1, 3, S, S).
        index: Index of the label.
        kind: See `Kind`.

    Raises:
        IntclipError: The method or its backbone has no such evidence.
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
        raise IntclipError("this method has no pairs of prompts; intclip and dualcoop have: take regions or gradcam")
    return found
