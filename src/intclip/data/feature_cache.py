"""Frozen features of photos, computed once and stored as memory-mapped shards.

    cache = open_or_build(CacheFolder(folder), samples, cache_key(backbone, method.needs, dtype="float16"), extract,
                          views=range(1, 1 + K), augment=augment)
    features = cache.batch(indices, view=1)

View 0 is the plain photo; view v ≥ 1 is what `partial(augment, epoch=0, view=v)`
returns, so augmentation is applied before caching and training cycles through the K views. Complete shards are never
recomputed: an interrupted build continues with the missing ones, new views or photos add shards, and a change of
weights, preprocessing, augmentation or photos leads to new shards. See `cache_shards.py` for files and division of
work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.backbones.content import tensor_hashes
from intclip.backbones.preprocess import Preprocess
from intclip.data.cache_shards import (
    FORMAT,
    SHARD_BYTES,
    SHARD_PHOTOS,
    Arrays,
    CacheFolder,
    Dtype,
    Shapes,
    Shard,
    check_room,
    fill,
    photo_hashes,
    plan,
    read_manifest,
    seal,
    write_shard,
)
from intclip.data.loading import PixelBatch, pixel_batches, read_for_model, usable_cores
from intclip.data.sample import Sample
from intclip.data.transforms import Augment
from intclip.errors import ImageError, StorageError, reason
from intclip.files import atomic_directory, digest

Extract = Callable[[npt.NDArray[np.float32]], Arrays]
"""Pixels (B, 3, S, S) to features (B, …) by name, "stages" as `stage1` … `stage4`: see `intclip.training.frozen`."""


@dataclass(frozen=True)
class CacheKey:
    """Everything that a feature depends on except the photo and its view.

    Attributes:
        weights: Hash of the backbone's image tower, see `weights_hash`.
        preprocess: Photo to pixels.
        names: Backbone features; "pixels" cannot be cached.
        dtype: Numbers on disk.
        precision: Precision of the extracting engine, such as "fp32" or "bf16".
    """

    weights: str
    preprocess: Preprocess
    names: tuple[FeatureName, ...]
    dtype: Dtype = "float16"
    precision: str = "fp32"

    def describe(self) -> dict[str, object]:
        """Return the key as plain JSON."""
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
    """Return the key of some features of a backbone.

    Args:
        backbone: The backbone.
        names: Features, as in a method's `needs`.
        dtype: Numbers on disk: float16 halves the space and rounds to 11 bits (relative error at most 2⁻¹¹).
        precision: Precision of the extracting engine.

    Raises:
        StorageError: "pixels" is among the names.
    """
    names = tuple(names)
    if "pixels" in names:
        raise StorageError("this method trains on pixels, which cannot be cached; switch the cache off")
    return CacheKey(weights_hash(backbone), backbone.preprocess, names, dtype, precision)


def weights_hash(backbone: Backbone) -> str:
    """Hash everything that an image tower's features depend on: name, architecture, preprocessing and tensors."""
    parts: list[object] = [backbone.name, backbone.design(), backbone.preprocess.model_dump(mode="json")]
    for part, module in (("trunk", backbone.trunk), ("deep", backbone.deep), ("head", backbone.head)):
        parts.append([part, tensor_hashes(module)])
    return digest(parts)


@dataclass(frozen=True)
class FeatureCache:
    """Features of N photos in some views, read from disk on demand.

    Attributes:
        shapes: Feature name to its shape without the batch.
        dtype: Numbers on disk.
        count: Number N of photos.
        shard_size: Photos in a shard.
        shards: View to its shards, in order of the photos.
        errors: Index to the error of an unreadable photo; its features are zeros.
    """

    shapes: Shapes
    dtype: Dtype
    count: int
    shard_size: int
    shards: dict[int, list[Shard]] = field(repr=False)
    errors: dict[int, str]

    @property
    def views(self) -> tuple[int, ...]:
        """The available views."""
        return tuple(self.shards)

    def __len__(self) -> int:
        """Number of photos."""
        return self.count

    def batch(
        self,
        indices: Sequence[int] | npt.NDArray[np.int64],
        view: int = 0,
        device: torch.device | str = "cpu",
    ) -> Features:
        """Return features of some photos, float32, in the order of `indices`.

        Args:
            indices: Positions among the samples, in any order.
            view: One of `views`.
            device: Target device; they are transferred in the dtype of the disk.

        Raises:
            KeyError: The cache does not have that view.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.count:
            raise IndexError(f"indices must lie in [0, {self.count})")
        shards = self.shards[view]
        numbers = wanted // self.shard_size
        features: Features = {}
        for name, shape in self.shapes.items():
            out = np.empty((len(wanted), *shape), dtype=self.dtype)
            for number in np.unique(numbers):
                rows = np.flatnonzero(numbers == number)
                shard = shards[number]
                out[rows] = _mapped(str(shard.path(name)))[wanted[rows] - shard.start]
            features[name] = to_device(torch.from_numpy(out), torch.device(device)).float()
        return features

    def batches(self, size: int, view: int = 0) -> Iterator[tuple[npt.NDArray[np.int64], Features]]:
        """Yield (indices, features) of all photos in order, reading every file sequentially."""
        for start in range(0, self.count, size):
            indices = np.arange(start, min(start + size, self.count))
            yield indices, self.batch(indices, view)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, asynchronously for a GPU, which requires page-locked memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def open_or_build(
    folder: CacheFolder,
    samples: Sequence[Sample],
    key: CacheKey,
    extract: Extract,
    *,
    views: Iterable[int] = (0,),
    augment: Augment | None = None,
    batch_size: int = 32,
) -> FeatureCache:
    """Open the features of some samples, computing what is missing or damaged.

    Args:
        folder: Cache folder.
        samples: Photos of one split.
        key: See `cache_key`.
        extract: Computes the key's features.
        views: Views to store: 0 for the plain photo, 1 … K for augmented ones.
        augment: Required for views other than 0; its options and seed are part of a shard's name.
        batch_size: Photos per call of `extract`.

    Raises:
        StorageError: The missing shards do not fit the limit or the disk (nothing is computed then), a feature
            exceeds the range of the key's dtype, or the folder cannot be written.
    """
    views = tuple(views)
    if any(views) and augment is None:
        raise ValueError("views other than 0 need an augmentation")
    shapes = _shapes(key, extract)
    bytes_per_photo = sum(map(prod, shapes.values())) * np.dtype(key.dtype).itemsize
    size = max(1, min(SHARD_PHOTOS, SHARD_BYTES // bytes_per_photo))
    workers = folder.workers or usable_cores()
    home = folder.path / key.digest()
    augmentation = None if augment is None else {"seed": augment.seed, **augment.config.model_dump(mode="json")}
    hashes = photo_hashes([sample.image for sample in samples], workers)
    shards = plan(home, hashes, views, size, augmentation)
    if folder.crew.rank == 0:
        _drop_mended(chain(*shards.values()), samples, key.preprocess.size)
    load = partial(pixel_batches, samples, key.preprocess, batch_size, workers=workers)

    def build(shard: Shard) -> None:
        change = partial(augment, epoch=0, view=shard.view) if augment is not None and shard.view else None
        batches = load(indices=shard.indices, augment=change)
        _build(shard, batches, extract, shapes, key.dtype)

    fill(
        home,
        key.describe(),
        chain(*shards.values()),
        build,
        check_room=partial(check_room, folder=folder.path, bytes_per_photo=bytes_per_photo, limit=folder.limit),
        how=folder,
    )
    _mapped.cache_clear()  # a shard read earlier may have been replaced
    errors = {
        shard.start + int(row): reason
        for shard in chain(*shards.values())
        for row, reason in read_manifest(shard)["errors"].items()
    }
    return FeatureCache(shapes, key.dtype, len(samples), size, shards, errors)


def _drop_mended(shards: Iterable[Shard], samples: Sequence[Sample], side: int) -> None:
    """Drop shards with a photo that could not be read and now can: with another extra, or after a fault of the disk."""
    for shard in shards:
        for row in read_manifest(shard).get("errors", {}):
            image = samples[shard.start + int(row)].image
            if image is not None:
                with suppress(ImageError, MemoryError, OSError):  # the cache may be read-only
                    read_for_model(image, side)
                    shard.manifest.unlink()
                    break


def _shapes(key: CacheKey, extract: Extract) -> Shapes:
    size = key.preprocess.size
    arrays = extract(np.zeros((1, 3, size, size), dtype=np.float32))
    wanted = chain(*([f"stage{i}" for i in range(1, 5)] if name == "stages" else [name] for name in key.names))
    if set(wanted) != arrays.keys():
        raise ValueError(f"the extractor gives {sorted(arrays)}, the key names {sorted(key.names)}")
    return {name: array.shape[1:] for name, array in arrays.items()}


def _build(shard: Shard, batches: Iterator[PixelBatch], extract: Extract, shapes: Shapes, dtype: Dtype) -> None:
    errors: dict[int, str] = {}

    def rows() -> Iterator[tuple[npt.NDArray[np.int64], Arrays]]:
        for indices, pixels, failed in batches:
            errors.update({index - shard.start: str(error) for index, error in failed})
            if len(indices):
                yield indices - shard.start, extract(pixels.numpy())

    with atomic_directory(shard.folder, overwrite=True) as partial_folder:
        try:
            write_shard(partial_folder, shapes, dtype, shard.count, rows())
        except FloatingPointError as error:
            raise StorageError(
                f"feature {error} of photos {shard.start} to {shard.start + shard.count - 1} has numbers beyond the "
                f"range of {dtype}; cache in float32, or check the backbone's weights"
            ) from error
        seal(partial_folder, shapes, errors)


@lru_cache(maxsize=256)  # each keeps a file open
def _mapped(path: str) -> npt.NDArray[Any]:
    try:
        mapped: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise StorageError(f"cannot read the cached features {path}: {reason(error)}; open the cache again") from error
    return mapped
