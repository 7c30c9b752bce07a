"""Prototypes: allocation to classes, initialisation (K-means), and updates (online clustering).

Online clustering, with momentum λ and the mean x̄_j of a step's features nearest to prototype j:

    p_j ← λ p_j + (1 − λ) x̄_j        if any feature is nearest to j, else unchanged        (MCCL, Eq. 5)

Collapse is measured by the perplexity of usage, exp(−Σ u_j log u_j): P if all P prototypes are used equally, 1 if only
one is used.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Floats = npt.NDArray[np.float32]
Update = Literal["momentum", "gradient", "fixed"]
"""Update of prototypes: online clustering, the optimiser, or none."""

USAGE_DECAY = 0.99
"""Decay of the moving average of usage per step."""


def allocate(counts: npt.ArrayLike, total: int, *, power: float = 1.0) -> npt.NDArray[np.int64]:
    """Allocate `total` prototypes to classes in proportion to n_c^−power, at least one per class.

    Remainders go to the classes with the largest fractions. Classes without samples get none.

    Args:
        counts: Samples n_c of each class (K,); may be sums of shares.
        total: At least the number of classes with samples.
        power: 1 is inverse to frequency, 0 is equal for all classes, negative values favour frequent classes.

    Raises:
        ValueError: `total` is below the number of classes with samples, or no class has samples.
    """
    samples = np.asarray(counts, dtype=np.float64)
    present = samples > 0
    classes = int(present.sum())
    if not 0 < classes <= total:
        raise ValueError(f"{total} prototypes cannot be shared by {classes} classes with samples")
    shares = np.zeros_like(samples)
    # Relative to the rarest class, to prevent overflow.
    shares[present] = (samples[present] / samples[present].min()) ** -power
    exact = shares / shares.sum() * (total - classes)
    given = np.floor(exact).astype(np.int64)
    left = total - classes - int(given.sum())
    given[np.argsort(given - exact, kind="stable")[:left]] += 1
    allotted: npt.NDArray[np.int64] = given + present
    return allotted


def kmeans(points: Floats, clusters: int, *, seed: int = 0, starts: int = 1, rounds: int = 50) -> Floats:
    """Return k-means centres (k, d) of points (N, d); with fewer points than clusters, points are repeated.

    Args:
        points: (N, d), at least one.
        clusters: k.
        seed: Seed of the initial centres.
        starts: Number of starts; the best result is used.
        rounds: Maximum rounds per start.
    """
    from sklearn.cluster import KMeans  # takes half a second to import, and is only needed before training

    if len(points) <= clusters:
        return points[np.arange(clusters) % len(points)]
    fitted = KMeans(clusters, n_init=starts, max_iter=rounds, random_state=seed).fit(points)
    centres: Floats = fitted.cluster_centers_.astype(np.float32)
    return centres


def perplexity(usage: Tensor) -> float:
    """Return the effective number of prototypes: exp of the entropy of usage (P,), of any sum; 0 if all are 0."""
    total = usage.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(usage.double() / total).sum().exp())


class PrototypePool(nn.Module):
    """P prototypes for unit features, with soft composition by cosine similarity and online clustering.

    In training, `forward` accumulates sums until `step` uses them, so that gradient accumulation works; sums are over
    all processes.

    Args:
        count: P.
        dim: C.
        temperature: τ of the softmax over cosines.
        momentum: λ.
        update: Update of the prototypes.

    Attributes:
        prototypes: (P, C).
        owner: Class of each prototype (P,); −1 before `place`.
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
        """Set the prototypes to centres (P, C) of the classes `owner` (P,)."""
        self.prototypes.copy_(centres)
        self.owner.copy_(owner)
        self.usage.fill_(1 / len(self.usage))

    def similarities(self, features: Tensor) -> Tensor:
        """Return cosines (…, P) of unit features (…, C)."""
        return features @ F.normalize(self.prototypes, dim=1).T

    def forward(self, features: Tensor) -> Tensor:
        """Compose unit features (…, C) of prototypes: Σ_j softmax_j(cos(x, p_j) / τ) p_j, (…, C)."""
        cosines = self.similarities(features)
        if self.training:
            self._observe(features.detach(), cosines.detach())
        return self._mix(cosines)

    def compose(self, features: Tensor) -> Tensor:
        """Compose like `forward`, without accumulating."""
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
        """Update prototypes and usage from the accumulated sums."""
        sums = torch.zeros_like(self.prototypes) if self._seen is None else self._seen[0]
        counts = torch.zeros_like(self.usage) if self._seen is None else self._seen[1]
        self._seen = None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process takes part, even if its share of the batch was empty.
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
        """Return the number of prototypes in effective use, in [1, P]."""
        return perplexity(self.usage)
