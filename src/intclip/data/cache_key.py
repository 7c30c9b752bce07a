"""What a cached feature's numbers depend on, besides the photo: the key of a feature cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from intclip.backbones.base import Backbone, FeatureName
from intclip.backbones.content import digest, tensor_hashes
from intclip.backbones.preprocess import Preprocess
from intclip.errors import StorageError

FORMAT = 2
"""Version of the layout and of how photos are read (2: colour profiles); part of every name, so that a newer program
rebuilds and never misreads."""

Dtype = Literal["float16", "float32"]


@dataclass(frozen=True)
class CacheKey:
    """Everything but the photo and its view that decides a feature's numbers.

    Attributes:
        weights: Hash of the backbone's image tower, see `weights_hash`.
        preprocess: Photo to pixels.
        names: Backbone features; "pixels" cannot be cached.
        dtype: Numbers on disk.
        precision: In what the extracting engine computes, such as "fp32" or "bf16".
    """

    weights: str
    preprocess: Preprocess
    names: tuple[FeatureName, ...]
    dtype: Dtype = "float16"
    precision: str = "fp32"

    def describe(self) -> dict[str, object]:
        """The key as plain JSON."""
        return {
            "format": FORMAT,
            "weights": self.weights,
            "preprocess": self.preprocess.model_dump(mode="json"),
            "names": sorted(self.names),
            "dtype": self.dtype,
            "precision": self.precision,
        }

    def digest(self) -> str:
        """Hash of the key, 16 hex digits: the name of its folder."""
        return digest(self.describe())[:16]


def cache_key(
    backbone: Backbone, names: Iterable[FeatureName], *, dtype: Dtype = "float16", precision: str = "fp32"
) -> CacheKey:
    """The key of some features of a backbone.

    Args:
        backbone: Gives the weights and the preprocessing.
        names: Which features, as a method's `needs` names them.
        dtype: Numbers on disk: float16 halves the space and rounds to 11 bits (relative error at most 2⁻¹¹).
        precision: In what the extracting engine computes.

    Raises:
        StorageError: "pixels" is among the names.
    """
    names = tuple(names)
    if "pixels" in names:
        raise StorageError("this method trains on pixels, which are not cached; train it with the cache off")
    return CacheKey(weights_hash(backbone), backbone.preprocess, names, dtype, precision)


def weights_hash(backbone: Backbone) -> str:
    """Hash of all that makes an image tower's features: name, design (activation, heads), preprocessing and tensors."""
    parts: list[object] = [backbone.name, backbone.design(), backbone.preprocess.model_dump(mode="json")]
    for part, module in (("trunk", backbone.trunk), ("deep", backbone.deep), ("head", backbone.head)):
        parts.append([part, tensor_hashes(module)])
    return digest(parts)
