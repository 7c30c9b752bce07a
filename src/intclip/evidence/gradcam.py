"""Grad-CAM, by captum: the gain in a label's logit if a region's features were stronger.

Selvaraju et al., Grad-CAM, ICCV 2017: the map is ReLU(Σ_c ᾱ_c x_c), x the last feature map (C, H, W) of a tower and ᾱ_c
the mean gradient of the logit over the positions of channel c. A model with two towers has a map of each; the logit
depends on both at once, so the fused map is the ReLU of the sum of the two before their own ReLU. The head of `lite`
reads the root of its features, whose slope at 0 is infinite: there x is that root.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.backbones.base import Features
from intclip.backbones.clip_vit import as_map
from intclip.backbones.lite import LiteHead
from intclip.errors import IntclipError
from intclip.extras import require
from intclip.methods.base import Method
from intclip.methods.branches import Branch

_TINY = 1e-12
_DEEP = {"deep", "regions", "pooled"}
"""Features computed from the frozen deep layers."""


def gradcam(method: Method, pixels: Tensor, index: int) -> dict[str, npt.NDArray[np.float32]]:
    """Compute a label's Grad-CAM maps (h, w), not negative: "sight" (frozen), "semantic" (trained), "fused".

    Args:
        method: In evaluation mode.
        pixels: (1, 3, S, S).
        index: Index of the label.

    Raises:
        IntclipError: The label's logit does not depend on a feature map.
        MissingExtraError: captum is not installed.
    """
    captum = require("captum.attr", "explain")
    model = _Logits(method)
    raw: dict[str, Tensor] = {}
    try:
        with torch.enable_grad(), model.tapped():
            for name, tap in model.taps.items():
                attributed = captum.LayerGradCam(model, tap).attribute(pixels.clone(), target=index)
                raw[name] = attributed[0, 0].detach()
    except RuntimeError as error:
        if "grad" not in str(error):
            raise
        raise IntclipError("Grad-CAM needs a feature map that the logit depends on; this method uses none") from error
    shape = max(map(tuple, (cam.shape for cam in raw.values())))
    total = sum(nn.functional.interpolate(cam[None, None], shape, mode="bilinear")[0, 0] for cam in raw.values())
    named = raw if len(raw) == 1 else raw | {"fused": total}
    return {name: cam.relu().cpu().numpy() for name, cam in named.items() if isinstance(cam, Tensor)}


class _Logits(nn.Module):
    """Pixels to logits with gradient all the way, the last feature map of every tower passing through a tap.

    Attributes:
        taps: Tower to the identity its map (B, C, H, W) passes through.
    """

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method
        needs = set(method.needs)
        self.stage = max((name for name in needs if name.startswith("stage")), default=None)
        self.branches = [module for module in method.modules() if isinstance(module, Branch)]
        # With a trained copy of the last stage, a method's other stages only add detail.
        sight = needs & _DEEP or (self.stage is not None and not self.branches)
        # A method that runs the frozen deep layers itself.
        self.reads_deep = not sight and not self.branches and "trunk" in needs
        self.taps = nn.ModuleDict({"sight": nn.Identity()} if sight or self.reads_deep else {})
        if self.branches:
            self.taps["semantic"] = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, K)."""
        logits: Tensor = self.method(self._features(pixels)).logits
        return logits

    @contextmanager
    def tapped(self) -> Iterator[None]:
        """The method with the maps of the towers that it runs itself led through their tap."""
        name = "sight" if self.reads_deep else "semantic"
        deep = self.method.backbone.deep
        # A method may run the layers one by one: the last one's output is the tower's in any case.
        last = deep[-1] if isinstance(deep, nn.Sequential) else deep
        towers = [last] if self.reads_deep else self.branches

        def lead(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            return self._through(name, output)

        handles = [tower.register_forward_hook(lead) for tower in towers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _features(self, pixels: Tensor) -> Features:
        """Compute `Backbone.features` with gradient."""
        backbone, needs = self.method.backbone, self.method.needs
        found: Features = {"pixels": pixels}
        stages = [int(name.removeprefix("stage")) for name in needs if name.startswith("stage") and name != "stages"]
        if "stages" in needs:
            stages = [1, 2, 3, 4]
        if stages:
            maps = backbone.stage_maps(pixels)
            found |= {f"stage{i}": maps[i - 1] for i in stages}
            if "sight" in self.taps and not set(needs) & _DEEP:
                last = f"stage{max(stages)}"
                found[last] = self.taps["sight"](found[last])
        found["trunk"] = backbone.trunk(pixels)
        if set(needs) & _DEEP:
            deep = self._through("sight", backbone.deep(found["trunk"]))
            found |= {"deep": deep, "regions": backbone.head.regions(deep), "pooled": backbone.head.pooled(deep)}
        return found

    def _through(self, name: str, deep: Tensor) -> Tensor:
        """Lead a feature map through a tap; of a ViT's tokens (B, P + N, W) the patches, as a map."""
        tap = self.taps[name]
        if deep.dim() == 3:
            before = deep.shape[1] - math.prod(self.method.backbone.grid)
            patches = tap(as_map(deep[:, before:])).flatten(2).transpose(1, 2)
            return torch.cat([deep[:, :before], patches], dim=1)
        if isinstance(self.method.backbone.head, LiteHead):
            # The head takes the root again; a little above 0 its slope is finite.
            squared: Tensor = tap(deep.sqrt()).square() + _TINY
            return squared
        tapped: Tensor = tap(deep)
        return tapped
