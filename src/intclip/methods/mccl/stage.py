"""One stage of MCCL: its feature map as unit patches, composed of prototypes, projected to the common width."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.methods.mccl.options import PoolOptions
from intclip.methods.prototypes import PrototypePool, kmeans


class Stage(nn.Module):
    """Patches of one stage.

    A patch x becomes u = x' / |x'| with x' = (x − mean) / deviation, channel by channel over the training set:
    rectified features all point the same way, and cosines separate them only once their mean is gone. Compositions
    are scaled likewise, û' = (û − mean) / (deviation √C): a third of what they hold is what all of them share, and the
    layer norm behind would keep that and shrink the rest.

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
            # Without composition no prototype is looked at, and none may wait for a gradient.
            update="fixed" if options.composition == "none" else options.update,
        )
        self.project = nn.Linear(channels, dim)
        self.norm = nn.LayerNorm(dim)

    def patches(self, features: Tensor) -> Tensor:
        """Unit patches (B, H, W, C) of a map (B, C, H, W)."""
        return F.normalize(self.scale(features.permute(0, 2, 3, 1)), dim=3)

    def forward(self, features: Tensor) -> Tensor:
        """The composed map in the common width, (B, d, H, W), of the stage's map (B, C, H, W)."""
        patches = self.patches(features)
        if self.composition != "none":
            composed = self.composed_scale(self.pool(patches)) * patches.shape[3] ** -0.5
            patches = composed if self.composition == "replace" else patches + composed
        out: Tensor = self.norm(self.project(patches))
        return out.permute(0, 3, 1, 2)

    @torch.no_grad()
    def place_prototypes(self, samples: list[Tensor], counts: Iterable[int], *, seed: int) -> None:
        """Cluster each class's patches and put its prototypes there.

        Args:
            samples: Unit patches (n, C) of every class.
            counts: Prototypes of every class, summing to P.
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
        """Measure on unit patches (n, C) how their compositions spread."""
        if self.composition == "none":
            return
        moments = Moments()
        for part in torch.split(patches, 4096):
            moments.add(self.pool.compose(part.to(self.pool.prototypes)))
        moments.give(self.composed_scale)


class ChannelScale(nn.Module):
    """(x − mean) / deviation of the last axis, by fixed moments; the identity until they are given.

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
        """(…, C) to (…, C)."""
        return (x - self.mean) / self.deviation


class Moments:
    """Mean and deviation of channels over many vectors, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, vectors: Tensor) -> None:
        """Take in vectors (…, C)."""
        flat = vectors.flatten(0, -2).double()
        new = [flat.sum(dim=0), flat.square().sum(dim=0)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += len(flat)

    @torch.no_grad()
    def give(self, scale: ChannelScale) -> None:
        """Set a scale; a channel that never varies keeps deviation 1."""
        if not self.count:
            return
        mean, square = (total / self.count for total in self.sums)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        scale.mean.copy_(mean)
        scale.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


@torch.no_grad()
def sample_patches(patches: Tensor, targets: Tensor, rates: Tensor) -> Mapping[int, Tensor]:
    """Random patches of every class that occurs in a batch.

    Args:
        patches: (B, H, W, C).
        targets: (B, K) in [0, 1]; NaN counts as 0.
        rates: Patches wanted of a photo with target 1, for each class (K,); a share of votes takes its share of them.

    Returns:
        Class to patches (n, C).
    """
    flat = patches.flatten(1, 2)
    wanted = (targets.nan_to_num(0) * rates).clamp(max=flat.shape[1])
    # A fraction is a chance, so that the mean is right however small the rate.
    counts = (wanted + torch.rand_like(wanted)).floor().long().cpu()
    found: dict[int, list[Tensor]] = {}
    for photo, label in counts.nonzero().tolist():
        order = torch.randperm(flat.shape[1])[: int(counts[photo, label])]
        found.setdefault(label, []).append(flat[photo, order.to(flat.device)])
    return {label: torch.cat(parts) for label, parts in found.items()}
