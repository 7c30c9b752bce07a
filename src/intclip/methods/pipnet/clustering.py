"""Prototypes of PIP-Net: clustered from each class's typical photos, matched to the previous ones, and moved apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.methods.prototypes import kmeans

_STARTS, _ROUNDS = 10, 300
"""Starts and rounds of K-means: scikit-learn's defaults at the time, as the released code sets neither."""


def class_prototypes(
    features: Tensor, votes: Tensor, count: int, *, least_share: float, discard: float
) -> tuple[Tensor, Tensor]:
    """Return unit K-means centres of every class.

    Args:
        features: (N, C).
        votes: (N, K) in [0, 1]; NaN counts as 0.
        count: Number M of centres per class.
        least_share: Minimum share of votes of a photo; for a class without such photos, all with any vote are used.
        discard: Share of these photos to leave out: those least similar to the class's mean.

    Returns:
        Centres (K, M, C), zeros for a class without photos, and which classes have photos (K,).
    """
    votes = votes.nan_to_num(0)
    centres = features.new_zeros(votes.shape[1], count, features.shape[1])
    made = votes.amax(dim=0) > 0
    for label in made.nonzero().flatten().tolist():
        share = votes[:, label]
        rows = share >= least_share
        if not rows.any():
            rows = share > 0
        points = typical(features[rows], share[rows], discard)
        # Only a photo's direction counts; the published code divides by the sum of the coordinates, which are ≥ 0.
        found = kmeans(F.normalize(points, p=1, dim=1).numpy(), count, seed=label, starts=_STARTS, rounds=_ROUNDS)
        centres[label] = F.normalize(torch.from_numpy(found).to(centres), dim=1)
    return centres, made


def typical(points: Tensor, votes: Tensor, discard: float) -> Tensor:
    """Return points (n, C) without the share `discard` of smallest cosine to their mean, weighted by votes (n,)."""
    mean = (votes[:, None] * points).mean(dim=0)
    order = F.cosine_similarity(points, mean[None]).sort(stable=True).indices
    return points[order[int(discard * points.shape[0]) :]]


def matched(new: Tensor, old: Tensor) -> Tensor:
    """Return the new prototypes (K, M, C), in each class in the order that best matches the old ones.

    The assignment maximises the sum of cosines (Kuhn's Hungarian method).
    """
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(old, dim=2) @ F.normalize(new, dim=2).transpose(1, 2)
    orders = [linear_sum_assignment(table, maximize=True)[1] for table in cosines.cpu().numpy()]
    return torch.stack([points[order] for points, order in zip(new, map(torch.as_tensor, orders), strict=True)])


def diversity(prototypes: Tensor) -> Tensor:
    """Return the Frobenius norm of cosines between mean prototypes of the classes of (K, M, C); at least √K."""
    means = F.normalize(prototypes.mean(dim=1), dim=1)
    norm: Tensor = torch.linalg.matrix_norm(means @ means.T)
    return norm


def diversity_step(prototypes: Tensor, rate: float) -> Tensor:
    """Return the prototypes (K, M, C) after one step of Adam that reduces `diversity`."""
    with torch.enable_grad():
        moving = prototypes.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([moving], lr=rate)
        torch.autograd.backward(diversity(moving))
        optimizer.step()
    return moving.detach()
