"""Prototypes: how many a class gets, where they start (K-means), how they follow the features (online clustering).

Online clustering, with momentum λ and x̄_j the mean of the features nearest to prototype j in a step:

    p_j ← λ p_j + (1 − λ) x̄_j        where any feature is nearest to j, else p_j stays        (MCCL, Eq. 5)

Collapse is measured by the perplexity of usage, exp(−Σ u_j log u_j): P when all P prototypes are used alike, 1 when one
takes everything.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Floats = npt.NDArray[np.float32]
Update = Literal["momentum", "gradient", "fixed"]
"""How prototypes move: online clustering, the optimiser, or not at all."""

USAGE_DECAY = 0.99
"""Of the moving average of usage, a step."""


def allocate(counts: npt.ArrayLike, total: int, *, power: float = 1.0) -> npt.NDArray[np.int64]:
    """How many of `total` prototypes each class gets: in proportion to n_c^−power, at least one, and exactly `total`.

    Remainders go to the classes with the largest fractions. A class without samples gets none.

    Args:
        counts: Samples n_c of each class (K,); shares of votes may be counted.
        total: At least the number of classes that have samples.
        power: 1 is the inverse of abundance, 0 gives every class the same, negative values favour abundant classes.

    Raises:
        ValueError: `total` is below the number of classes that have samples, or no class has any.
    """
    samples = np.asarray(counts, dtype=np.float64)
    present = samples > 0
    classes = int(present.sum())
    if not 0 < classes <= total:
        raise ValueError(f"{total} prototypes cannot be shared by {classes} classes with samples")
    shares = np.zeros_like(samples)
    # Relative to the rarest, so that no power overflows.
    shares[present] = (samples[present] / samples[present].min()) ** -power
    exact = shares / shares.sum() * (total - classes)
    given = np.floor(exact).astype(np.int64)
    left = total - classes - int(given.sum())
    given[np.argsort(given - exact, kind="stable")[:left]] += 1
    allotted: npt.NDArray[np.int64] = given + present
    return allotted


def kmeans(points: Floats, clusters: int, *, seed: int = 0, starts: int = 1, rounds: int = 50) -> Floats:
    """Centres (k, d) of points (N, d); with fewer points than clusters, points are repeated.

    Args:
        points: At least one.
        clusters: k.
        seed: Seed of the first centres.
        starts: How often it begins anew; the best centres are taken.
        rounds: Rounds of one start at most.
    """
    from sklearn.cluster import KMeans  # half a second to import, and only needed before training

    if len(points) <= clusters:
        return points[np.arange(clusters) % len(points)]
    fitted = KMeans(clusters, n_init=starts, max_iter=rounds, random_state=seed).fit(points)
    centres: Floats = fitted.cluster_centers_.astype(np.float32)
    return centres


def perplexity(usage: Tensor) -> float:
    """Effective number of prototypes: exp of the entropy of usage (P,), which need not sum to 1; 0 where all is 0."""
    total = usage.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(usage.double() / total).sum().exp())


class PrototypePool(nn.Module):
    """P prototypes of unit features, softly composed by cosine similarity and moved by online clustering.

    In training, `forward` keeps the sums of what it saw until `step` uses them, so that a step cut into pieces counts
    as one; sums go over all processes.

    Args:
        count: P.
        dim: C.
        temperature: τ of the softmax over cosines.
        momentum: λ.
        update: How the prototypes move.

    Attributes:
        prototypes: (P, C).
        owner: Class for whose samples a prototype was made (P,); −1 before `place`.
        usage: Moving average of the share of features nearest to each prototype (P,).
    """

    owner: Tensor
    usage: Tensor

    def __init__(self, count: int, dim: int, *, temperature: float, momentum: float, update: Update) -> None:
        super().__init__()
        self.temperature, self.momentum, self.update = temperature, momentum, update
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1), update == "gradient")
        self.register_buffer("owner", torch.full((count,), -1))
        self.register_buffer("usage", torch.full((count,), 1 / count))
        self._seen: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def place(self, centres: Tensor, owner: Tensor) -> None:
        """Put the prototypes (P, C) where clustering found them, for the classes `owner` (P,)."""
        self.prototypes.copy_(centres)
        self.owner.copy_(owner)
        self.usage.fill_(1 / len(self.usage))

    def similarities(self, features: Tensor) -> Tensor:
        """Cosines (…, P) of unit features (…, C)."""
        return features @ F.normalize(self.prototypes, dim=1).T

    def forward(self, features: Tensor) -> Tensor:
        """Compose every feature of prototypes: Σ_j softmax_j(cos(x, p_j) / τ) p_j, (…, C) of unit features (…, C)."""
        cosines = self.similarities(features)
        if self.training:
            self._observe(features.detach(), cosines.detach())
        return self._mix(cosines)

    def compose(self, features: Tensor) -> Tensor:
        """`forward`, observing nothing."""
        return self._mix(self.similarities(features))

    def _mix(self, cosines: Tensor) -> Tensor:
        out: Tensor = (cosines / self.temperature).softmax(dim=-1) @ self.prototypes
        return out

    def _observe(self, features: Tensor, cosines: Tensor) -> None:
        nearest = cosines.argmax(dim=-1).flatten()
        flat = features.flatten(0, -2).to(self.prototypes.dtype)
        counts = torch.bincount(nearest, minlength=len(self.usage)).to(flat)
        sums = torch.zeros_like(self.prototypes).index_add_(0, nearest, flat)
        if self._seen is not None:
            sums, counts = sums + self._seen[0], counts + self._seen[1]
        self._seen = (sums, counts)

    @torch.no_grad()
    def step(self) -> None:
        """Move the prototypes and the usage by what the step saw."""
        sums = torch.zeros_like(self.prototypes) if self._seen is None else self._seen[0]
        counts = torch.zeros_like(self.usage) if self._seen is None else self._seen[1]
        self._seen = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process takes part, also one whose share of the batch was empty.
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        if not counts.sum() > 0:
            return
        self.usage.lerp_(counts / counts.sum(), 1 - USAGE_DECAY)
        if self.update == "momentum":
            met = counts > 0
            means = sums[met] / counts[met, None]
            self.prototypes[met] = self.momentum * self.prototypes[met] + (1 - self.momentum) * means

    def perplexity(self) -> float:
        """How many prototypes are in effective use, in [1, P]."""
        return perplexity(self.usage)
