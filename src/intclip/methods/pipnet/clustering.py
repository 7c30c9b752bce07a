"""Prototypes of PIP-Net: made of each class's most typical photos, matched to those before, and moved apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from intclip.methods.prototypes import kmeans

_STARTS, _ROUNDS = 10, 300
"""Of K-means: what scikit-learn's did when the method was published, whose released code sets neither."""


def class_prototypes(
    features: Tensor, votes: Tensor, count: int, *, least_share: float, discard: float
) -> tuple[Tensor, Tensor]:
    """K-means centres of every class, at length 1.

    Args:
        features: (N, C).
        votes: (N, K) in [0, 1]; NaN counts as 0.
        count: Centres M of a class.
        least_share: Votes from which a photo is taken; where no photo has as many, all with any vote are.
        discard: Share of the taken photos that is left out, those whose features are least like the class's mean.

    Returns:
        Centres (K, M, C), zeros where a class has no photo, and which classes have any (K,).
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
        # Each photo counts by its direction; the published code divides by the sum of the coordinates, which are ≥ 0.
        found = kmeans(F.normalize(points, p=1, dim=1).numpy(), count, seed=label, starts=_STARTS, rounds=_ROUNDS)
        centres[label] = F.normalize(torch.from_numpy(found).to(centres), dim=1)
    return centres, made


def typical(points: Tensor, votes: Tensor, discard: float) -> Tensor:
    """The points (n, C) without the share `discard` whose cosine to their mean, weighed by votes (n,), is smallest."""
    mean = (votes[:, None] * points).mean(dim=0)
    order = F.cosine_similarity(points, mean[None]).sort(stable=True).indices
    return points[order[int(discard * points.shape[0]) :]]


def matched(new: Tensor, old: Tensor) -> Tensor:
    """The new prototypes (K, M, C) of each class, in the order of the old ones they are most like in sum.

    The assignment is Kuhn's Hungarian method on cosines.
    """
    from scipy.optimize import linear_sum_assignment

    cosines = F.normalize(old, dim=2) @ F.normalize(new, dim=2).transpose(1, 2)
    orders = [linear_sum_assignment(table, maximize=True)[1] for table in cosines.cpu().numpy()]
    return torch.stack([points[order] for points, order in zip(new, map(torch.as_tensor, orders), strict=True)])


def diversity(prototypes: Tensor) -> Tensor:
    """Frobenius norm of the cosines between the classes' mean prototypes, of prototypes (K, M, C); √K at the least."""
    means = F.normalize(prototypes.mean(dim=1), dim=1)
    norm: Tensor = torch.linalg.matrix_norm(means @ means.T)
    return norm


def diversity_step(prototypes: Tensor, rate: float) -> Tensor:
    """The prototypes (K, M, C) after one step of Adam that makes `diversity` smaller."""
    with torch.enable_grad():
        moving = prototypes.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([moving], lr=rate)
        torch.autograd.backward(diversity(moving))
        optimizer.step()
    return moving.detach()
