"""Randomised smoothing of any method: votes of noisy copies, predicted labels, and their certificates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.preprocess import Preprocess
from intclip.methods.base import Method
from intclip.methods.multiguard.certificate import certified_overlap, certified_radius, clopper_pearson


def add_noise(pixels: Tensor, noise: Tensor, preprocess: Preprocess, sigma: float) -> Tensor:
    """Return preprocessed pixels (B, 3, S, S) of clamp(x + σ ε, 0, 1), x the photo's values in [0, 1].

    Args:
        pixels: Preprocessed.
        noise: ε, standard normal, broadcastable to the pixels.
        preprocess: Provides mean and deviation, to recover x.
        sigma: σ.
    """
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return ((pixels * std + mean + sigma * noise).clamp(0, 1) - mean) / std


@dataclass(frozen=True)
class Smoothed:
    """A method smoothed by noise.

    Attributes:
        method: In evaluation mode.
        sigma: Standard deviation of the noise, for pixel values in [0, 1].
        n: Number of noisy copies of a photo.
        top: k': number of votes of each copy.
        batch_size: Copies per batch.
        seed: Seed of the noise; the same photo gets the same votes.
    """

    method: Method
    sigma: float
    n: int
    top: int = 1
    batch_size: int = 64
    seed: int = 0

    @torch.no_grad()
    def votes(self, pixels: Tensor) -> npt.NDArray[np.int64]:
        """Return the number of copies, of n, with each label among their k' most probable, (K,).

        Args:
            pixels: One preprocessed photo (3, S, S).
        """
        self.method.eval()
        backbone = self.method.backbone
        generator = torch.Generator().manual_seed(self.seed)
        counts = torch.zeros(len(self.method.taxonomy), dtype=torch.int64)
        for start in range(0, self.n, self.batch_size):
            count = min(self.batch_size, self.n - start)
            # Drawn on the CPU: the same noise on every device.
            noise = torch.randn(count, *pixels.shape, generator=generator).to(pixels)
            noisy = add_noise(pixels[None], noise, backbone.preprocess, self.sigma)
            logits = self.method(backbone.features(noisy, self.method.needs)).logits
            chosen = logits.topk(min(self.top, logits.shape[1]), dim=1).indices.flatten().cpu()
            counts += torch.bincount(chosen, minlength=len(counts))
        votes: npt.NDArray[np.int64] = counts.numpy()
        return votes

    def predict(self, pixels: Tensor, k: int) -> npt.NDArray[np.int64]:
        """Return the k labels with the most votes, in descending order; ties go to the earlier label."""
        order: npt.NDArray[np.int64] = np.argsort(-self.votes(pixels), kind="stable")[:k]
        return order

    def certify(
        self, pixels: Tensor, true: npt.ArrayLike, *, k: int, radius: float, alpha: float = 0.001
    ) -> tuple[int, float]:
        """Return how many true labels are certainly among the k predicted ones under any change below `radius`.

        Args:
            pixels: One preprocessed photo (3, S, S).
            true: True labels (K,), bool.
            k: Number of predicted labels.
            radius: L2 norm of the change, for pixel values in [0, 1] at the model's input size.
            alpha: Maximum probability that the certificate is wrong.

        Returns:
            That number, and the largest radius at which at least one true label certainly stays.
        """
        votes = self.votes(pixels)
        lower, upper = clopper_pearson(votes, self.n, alpha / len(votes))
        sure = certified_overlap(lower, upper, true, k=k, votes=self.top, sigma=self.sigma, radius=radius)
        far = certified_radius(lower, upper, true, k=k, votes=self.top, sigma=self.sigma, overlap=1)
        return sure, far


def smoothing(method: Method, sigma: float, n: int, *, top: int = 1, batch_size: int = 64, seed: int = 0) -> Smoothed:
    """Smooth any method.

    Args:
        method: Trained, preferably under the same noise (by `multiguard`).
        sigma: Standard deviation of the noise, for pixel values in [0, 1].
        n: Number of noisy copies of a photo.
        top: k': number of votes of each copy.
        batch_size: Copies per batch.
        seed: Seed of the noise.

    Raises:
        ValueError: A value is not positive.
    """
    if min(sigma, n, top, batch_size) <= 0:
        raise ValueError("sigma, n, top and batch_size must be positive")
    return Smoothed(method, sigma, n, top, batch_size, seed)
