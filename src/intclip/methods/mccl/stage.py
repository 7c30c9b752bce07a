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
    rectified features all point the same way, and cosines tell them apart only once their mean is gone.

    Args:
        channels: C of the stage's map.
        dim: Common width d.
        options: Of the prototypes.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, channels: int, dim: int, options: PoolOptions) -> None:
        super().__init__()
        self.composition = options.composition
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("deviation", torch.ones(channels))
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
        return F.normalize((features.permute(0, 2, 3, 1) - self.mean) / self.deviation, dim=3)

    def forward(self, features: Tensor) -> Tensor:
        """The composed map in the common width, (B, d, H, W), of the stage's map (B, C, H, W)."""
        patches = self.patches(features)
        if self.composition != "none":
            composed = self.pool(patches)
            patches = composed if self.composition == "replace" else patches + composed
        out: Tensor = self.norm(self.project(patches))
        return out.permute(0, 3, 1, 2)

    @torch.no_grad()
    def place_prototypes(self, samples: list[Tensor], counts: Iterable[int], *, seed: int) -> None:
        """Cluster each class's patches and put its prototypes there.

        Args:
            samples: Unit patches (n, C) of every class.
            counts: Prototypes of every class, summing to P.
            seed: Of the clustering.
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


class Moments:
    """Mean and deviation of channels over many maps, in double precision."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Take in a map (B, C, H, W)."""
        flat = features.double().transpose(0, 1).flatten(1)
        new = [flat.sum(dim=1), flat.square().sum(dim=1)]
        self.sums = [a + b for a, b in zip(self.sums, new, strict=True)] if self.sums else new
        self.count += flat.shape[1]

    @torch.no_grad()
    def give(self, stage: Stage) -> None:
        """Set a stage's scales; a channel that never varies keeps deviation 1."""
        if not self.count:
            return
        mean, square = (total / self.count for total in self.sums)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        stage.mean.copy_(mean)
        stage.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))


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
