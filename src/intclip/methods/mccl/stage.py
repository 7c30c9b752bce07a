"""One stage of MCCL: its feature map as unit patches, composed of prototypes, projected to the common width."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.methods.mccl.options import PoolOptions
from intclip.methods.prototypes import PrototypePool, kmeans


class Stage(nn.Module):
    """Patches of one stage.

    A patch x becomes u = x' / |x'| with x' = (x − mean) / deviation, by channel over the training set: rectified
    features have similar directions, which cosines separate only after subtracting the mean. Compositions are scaled
    too, û' = (û − mean) / (deviation √C): a third of their squared norm is common to all, and the layer norm after them
    would preserve that part and shrink the differences.

    Args:
        channels: C of the stage's map.
        dim: Common width d.
        options: Options of the prototypes.
    """

    def __init__(self, channels: int, dim: int, options: PoolOptions) -> None:
        super().__init__()
        self.composition = options.composition
        self.scale = ChannelScale(channels)
        self.composed_scale = ChannelScale(channels)
        self.pool = PrototypePool(
            options.prototypes,
            channels,
            temperature=options.temperature,
            momentum=options.momentum,
            # Without composition, prototypes are unused and must not expect a gradient.
            update="fixed" if options.composition == "none" else options.update,
        )
        self.project = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def patches(self, features: Tensor) -> Tensor:
        """Return unit patches (B, H, W, C) of a map (B, C, H, W)."""
        return F.normalize(self.scale(features.permute(0, 2, 3, 1)), dim=3)

    def forward(self, features: Tensor) -> Tensor:
        """Return the composed map (B, d, H, W), in the common width, of the stage's map (B, C, H, W)."""
        patches = self.patches(features)
        if self.composition != "none":
            composed = self.composed_scale(self.pool(patches)) * patches.shape[3] ** -0.5
            patches = composed if self.composition == "replace" else patches + composed
        out: Tensor = self.norm(self.project(patches))
        return out.permute(0, 3, 1, 2)

    @torch.no_grad()
    def place_prototypes(self, samples: list[Tensor], counts: Iterable[int], *, seed: int) -> None:
        """Cluster each class's patches, and set its prototypes to the centres.

        Args:
            samples: Unit patches (n, C) by class.
            counts: Number of prototypes of each class; their sum is P.
            seed: Seed of the clustering.
        """
        centres, owner = self.pool.prototypes.detach().clone(), torch.full_like(self.pool.owner, -1)
        start = 0
        for label, (points, count) in enumerate(zip(samples, counts, strict=True)):
            if count and len(points):
                found = kmeans(points.cpu().numpy(), count, seed=seed)
                centres[start : start + count] = torch.from_numpy(found).to(centres)
                owner[start : start + count] = label
            start += count
        self.pool.place(centres, owner)

    @torch.no_grad()
    def scale_compositions(self, patches: Tensor) -> None:
        """Set the scale of compositions from unit patches (n, C)."""
        if self.composition == "none":
            return
        moments = Moments()
        for part in torch.split(patches, 4096):
            moments.add(self.pool.compose(part.to(self.pool.prototypes)))
        moments.give(self.composed_scale)


class ChannelScale(nn.Module):
    """(x − mean) / deviation along the last axis, with fixed moments; the identity until they are set.

    Args:
        channels: C.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, C) to (…, C)."""
        return (x - self.mean) / self.deviation


class Moments:
    """Accumulates mean and deviation of channels over vectors, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, vectors: Tensor) -> None:
        """Add vectors (…, C)."""
        flat = vectors.flatten(0, -2).double()
        new = [flat.sum(dim=0), flat.square().sum(dim=0)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(flat)

    @torch.no_grad()
    def give(self, scale: ChannelScale) -> None:
        """Set the moments of a scale; a constant channel has deviation 1."""
        if not self.count:
            return
        mean, square = (total / self.count for total in self.sums)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        scale.mean.copy_(mean)
        scale.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


@torch.no_grad()
def sample_patches(patches: Tensor, targets: Tensor, rates: Tensor) -> Mapping[int, Tensor]:
    """Sample random patches of every class in a batch.

    Args:
        patches: (B, H, W, C).
        targets: (B, K) in [0, 1]; NaN counts as 0.
        rates: Expected patches per photo with target 1, for each class (K,); scaled by soft targets.

    Returns:
        Class to patches (n, C).
    """
    flat = patches.flatten(1, 2)
    wanted = (targets.nan_to_num(0) * rates).clamp(max=flat.shape[1])
    # A fraction is a probability, so that the mean is right even for small rates.
    counts = (wanted + torch.rand_like(wanted)).floor().long().cpu()
    found: dict[int, list[Tensor]] = {}
    for photo, label in counts.nonzero().tolist():
        order = torch.randperm(flat.shape[1])[: int(counts[photo, label])]
        found.setdefault(label, []).append(flat[photo, order.to(flat.device)])
    return {label: torch.cat(parts) for label, parts in found.items()}
