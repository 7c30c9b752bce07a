"""Mixup: train on convex combinations of two photos' features and targets.

Zhang, Cisse, Dauphin, Lopez-Paz: mixup, ICLR 2018. On features of the frozen trunk it is manifold mixup (Verma et al.,
ICML 2019), so it needs no pixels and works from the cache.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from intclip.backbones.base import Features


def mixed(views: Sequence[Features], targets: Tensor, alpha: float) -> tuple[list[Features], Tensor]:
    """Mix each photo of a batch with another one, with weight λ ~ Beta(α, α) for the photo itself.

    One λ and one pairing apply to the batch, for all views and features. Random numbers come from torch's
    global generator.

    Args:
        views: Features (B, …) by name, one mapping per view.
        targets: (B, K); NaN where unknown; a mix with NaN is NaN.
        alpha: α; 0 returns the batch unchanged.
    """
    if not alpha:
        return list(views), targets
    share = torch.distributions.Beta(alpha, alpha).sample().to(targets.device)
    other = torch.randperm(len(targets)).to(targets.device)

    def mix(values: Tensor) -> Tensor:
        return torch.lerp(values[other], values, share.to(values.dtype))

    return [{name: mix(values) for name, values in view.items()} for view in views], mix(targets)
