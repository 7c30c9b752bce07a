"""`intclip data check`: find problems of a dataset's photos and labels before training."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from intclip.data.duplicates import NEAR_BITS as NEAR_BITS
from intclip.data.duplicates import near_groups, perceptual_hash
from intclip.data.duplicates import near_pairs as near_pairs
from intclip.data.images import describe, read_bytes, read_image
from intclip.data.loading import usable_cores
from intclip.data.reading import is_there
from intclip.data.sample import Dataset, Sample
from intclip.errors import ImageError


@dataclass(frozen=True)
class Problem:
    """A photo that cannot be used, and why."""

    split: str
    id: str
    reason: str


@dataclass
class Check:
    """Result of a check.

    Attributes:
        dataset: Name of the dataset.
        splits: Split to its number of samples, of those with a photo, and of labelled ones.
        missing: Missing photos.
        corrupt: Unreadable photos.
        duplicates: Groups of ("split", "id") with the same bytes, within a split.
        near_duplicates: The same by perceptual hash, with different bytes.
        leaks: Groups of either kind across splits: the same photo in train and test.
        labels: Names of the K labels.
        positives: Split to (K,) numbers of positive samples.
        unknown: Split to (K,) numbers of samples whose label is unknown.
        cooccurrence: (K, K) numbers of samples, over all splits, in which both labels are positive.
        shift: Per pair of splits, the labels whose frequency differs most: label, both shares, z of the difference.
        labels_per_sample: Split to the mean number of positive labels of a labelled sample.
    """

    dataset: str
    labels: tuple[str, ...]
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    missing: list[Problem] = field(default_factory=list)
    corrupt: list[Problem] = field(default_factory=list)
    duplicates: list[list[tuple[str, str]]] = field(default_factory=list)
    near_duplicates: list[list[tuple[str, str]]] = field(default_factory=list)
    leaks: list[list[tuple[str, str]]] = field(default_factory=list)
    positives: dict[str, list[int]] = field(default_factory=dict)
    unknown: dict[str, list[int]] = field(default_factory=dict)
    cooccurrence: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64))
    shift: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    labels_per_sample: dict[str, float] = field(default_factory=dict)

    @property
    def sound(self) -> bool:
        """Whether every photo exists and can be read, and none is in two splits."""
        return not (self.missing or self.corrupt or self.leaks)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        plain = {key: value for key, value in vars(self).items() if key != "cooccurrence"}
        plain["missing"] = [vars(problem) for problem in self.missing]
        plain["corrupt"] = [vars(problem) for problem in self.corrupt]
        return {**plain, "cooccurrence": self.cooccurrence.tolist(), "sound": self.sound}


def check_dataset(
    dataset: Dataset,
    *,
    photos: bool = True,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Check:
    """Check every photo and label of a dataset, loaded with `missing="keep"` so that missing photos are found.

    Args:
        dataset: The dataset.
        photos: Read the photos; otherwise only check labels.
        workers: Threads that read photos.
        on_progress: Called with photos read and photos in all.
    """
    check = Check(dataset.name, dataset.taxonomy.names)
    _count_labels(dataset, check)
    if photos:
        _look_at_photos(dataset, check, workers or usable_cores(), on_progress)
    return check


def _look_at_photos(
    dataset: Dataset, check: Check, workers: int, on_progress: Callable[[int, int], None] | None
) -> None:
    listed = [(split, sample) for split, samples in dataset.splits.items() for sample in samples if sample.image]
    hashed: list[tuple[str, str, str, tuple[int, int]]] = []
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda pair: _look(pair[1]), listed)
        for done, ((split, sample), photo_hash) in enumerate(zip(listed, found, strict=True), 1):
            if isinstance(photo_hash, ImageError):
                problem = Problem(split, sample.id, f"{photo_hash}{sample.where and f' ({sample.where})'}")
                gone = sample.image is not None and not is_there(sample.image)
                (check.missing if gone else check.corrupt).append(problem)
            else:
                hashed.append((split, sample.id, *photo_hash))
            if on_progress is not None:
                on_progress(done, len(listed))
    same = _groups(hashed, [digest for _, _, digest, _ in hashed])
    alike = _alike_groups(hashed)
    check.leaks = [group for group in alike if len({split for split, _ in group}) > 1]
    check.duplicates = [group for group in same if len({split for split, _ in group}) == 1]
    exact = {frozenset(group) for group in same}
    check.near_duplicates = [
        group for group in alike if len({split for split, _ in group}) == 1 and frozenset(group) not in exact
    ]


def _look(sample: Sample) -> tuple[str, tuple[int, int]] | ImageError:
    """Return content hash and perceptual hash of a photo."""
    assert sample.image is not None
    try:
        content = read_bytes(sample.image)
        return hashlib.sha256(content).hexdigest(), perceptual_hash(read_image(content, min_side=64))
    except ImageError as error:
        return ImageError(str(error).replace("the given image data", describe(sample.image)))


def _groups(
    hashed: Sequence[tuple[str, str, str, tuple[int, int]]], keys: Sequence[object]
) -> list[list[tuple[str, str]]]:
    members: dict[object, list[tuple[str, str]]] = defaultdict(list)
    for (split, name, _, _), key in zip(hashed, keys, strict=True):
        members[key].append((split, name))
    return [group for group in members.values() if len(group) > 1]


def _alike_groups(hashed: Sequence[tuple[str, str, str, tuple[int, int]]]) -> list[list[tuple[str, str]]]:
    """Group samples by equal content or near hashes."""
    if not hashed:
        return []
    near = near_groups(np.array([near_hash for *_, near_hash in hashed], dtype=np.uint64))
    _, content = np.unique([digest for _, _, digest, _ in hashed], return_inverse=True)
    links = coo_array((np.ones(len(hashed), dtype=bool), (near, near.max() + 1 + content)))
    size = max(links.shape)
    links.resize((size, size))
    _, components = connected_components(links, directed=False)
    return _groups(hashed, components[near].tolist())


def _count_labels(dataset: Dataset, check: Check) -> None:
    total = np.zeros((len(check.labels), len(check.labels)), dtype=np.int64)
    shares: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = {}
    for split, samples in dataset.splits.items():
        if not samples:
            check.splits[split] = {"samples": 0, "photos": 0, "labelled": 0}
            continue
        targets = dataset.targets(split)
        known = ~np.isnan(targets)
        positive = np.nan_to_num(targets) >= dataset.positive_share
        labelled = int(known.any(axis=1).sum())
        photos = sum(sample.image is not None for sample in samples)
        check.splits[split] = {"samples": len(samples), "photos": photos, "labelled": labelled}
        check.positives[split] = positive.sum(axis=0).tolist()
        check.unknown[split] = (~known).sum(axis=0).tolist()
        check.labels_per_sample[split] = float(positive.sum() / max(1, labelled))
        total += positive.T.astype(np.int64) @ positive.astype(np.int64)
        shares[split] = (positive.sum(axis=0) / np.maximum(known.sum(axis=0), 1), known.sum(axis=0))
    check.cooccurrence = total
    for first, second in combinations(shares, 2):
        check.shift[f"{first} – {second}"] = _shift(check.labels, *shares[first], *shares[second])


def _shift(
    labels: Sequence[str],
    first: npt.NDArray[np.float64],
    first_size: npt.NDArray[np.int64],
    second: npt.NDArray[np.float64],
    second_size: npt.NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Rank labels by their shift (two-proportion z statistic), largest first."""
    pooled = (first * first_size + second * second_size) / np.maximum(first_size + second_size, 1)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / np.maximum(first_size, 1) + 1 / np.maximum(second_size, 1)))
    z = np.divide(second - first, spread, out=np.zeros_like(first), where=spread > 0)
    return [
        {"label": labels[k], "first": float(first[k]), "second": float(second[k]), "z": float(z[k])}
        for k in np.argsort(-np.abs(z), kind="stable").tolist()
    ]
