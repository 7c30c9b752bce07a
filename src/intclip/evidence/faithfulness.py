"""Faithfulness of heat maps to the model.

deletion pixels with the highest values are set to the mean colour first; the probability should fall early: low area
insertion they are inserted into a blurred photo first; the probability should rise early: high area
mass inside an object is pasted into a scene; the map's mass should be on it
randomised   the model's weights are shuffled; the map should change

Deletion and insertion are those of Petsiuk, Das, Saenko: RISE, BMVC 2018; the last is Adebayo et al., Sanity Checks for
Saliency Maps, NeurIPS 2018. `random_map` and `center_map` are baselines; the second is strong
because photographers centre their subjects.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import nn

from intclip.evidence.heat import Heat, unit_range, upsample

Score = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.floating]]
"""Probabilities (B,) of one label for pixels (B, 3, S, S)."""
BLUR = 1 / 16
"""Standard deviation of insertion's initial blur, as a share of the photo's side."""


@dataclass(frozen=True)
class Curve:
    """Probability of a label while the photo changes.

    Attributes:
        share: Share of the pixels changed, from 0 to 1 (steps + 1,).
        probability: Probability of the label (steps + 1,).
    """

    share: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]

    @property
    def area(self) -> float:
        """Area under the curve, in [0, 1]."""
        return float(np.trapezoid(self.probability, self.share))


def deletion(score: Score, pixels: npt.NDArray[np.float32], heat: Heat, *, steps: int = 16) -> Curve:
    """Measure the probability while pixels are set to 0 (the mean colour), highest values first.

    Args:
        score: The model.
        pixels: Normalised (3, S, S).
        heat: (S, S).
        steps: Equal shares of the pixels.
    """
    return _replace(score, pixels, np.zeros_like(pixels), heat, steps)


def insertion(score: Score, pixels: npt.NDArray[np.float32], heat: Heat, *, steps: int = 16) -> Curve:
    """Measure the probability while pixels enter the blurred photo, highest values first; see `deletion`."""
    sigma = BLUR * pixels.shape[-1]
    return _replace(score, gaussian_filter(pixels, (0, sigma, sigma)), pixels, heat, steps)


def _replace(
    score: Score, start: npt.NDArray[np.float32], end: npt.NDArray[np.float32], heat: Heat, steps: int
) -> Curve:
    if heat.shape != start.shape[1:]:
        raise ValueError(f"a map {heat.shape} does not fit pixels {start.shape}")
    order = np.argsort(-heat, axis=None, kind="stable")
    rank = np.empty(heat.size, dtype=np.int64)
    rank[order] = np.arange(heat.size)
    counts = np.round(np.linspace(0, heat.size, steps + 1))
    changed = (rank.reshape(heat.shape) < counts[:, None, None])[:, None]
    probability = score(np.where(changed, end, start).astype(np.float32, copy=False))
    return Curve(counts / heat.size, np.asarray(probability, dtype=np.float64))


def random_map(size: int, seed: int, *, grid: int = 7) -> Heat:
    """Return a random map (S, S): noise on a grid of the model's resolution, smoothed like its maps."""
    return unit_range(upsample(np.random.default_rng(seed).random((grid, grid)), size))


def center_map(size: int) -> Heat:
    """Return a centred Gaussian (S, S) with a width of a quarter of the side."""
    offset = (np.arange(size) + 0.5) / size - 0.5
    bell = np.exp(-0.5 * (offset / 0.25) ** 2)
    return unit_range(np.outer(bell, bell))


def mass_inside(heat: Heat, box: tuple[int, int, int, int]) -> float:
    """Return the share of a map's mass within (left, top, right, bottom), in [0, 1], after subtracting its minimum."""
    mass = heat - heat.min()
    left, top, right, bottom = box
    total = float(mass.sum())
    return float(mass[top:bottom, left:right].sum()) / total if total else 0.0


def rank_agreement(first: Heat, second: Heat) -> float:
    """Return Spearman's rank correlation of two maps; 0 if one of them is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(spearmanr(first, second, axis=None).statistic)


@torch.no_grad()
def shuffle_weights(module: nn.Module, seed: int = 0) -> None:
    """Permute the values of each parameter, in place, for any architecture."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].view_as(parameter))
