"""Splits for datasets without published ones: seeded, stratified by each sample's rarest label."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.data.reading import Splits
from intclip.data.sample import Sample
from intclip.errors import DatasetError

Floats = npt.NDArray[np.floating[Any]]
Rows = npt.NDArray[np.int64]


def strata(samples: Sequence[Sample]) -> npt.NDArray[np.int64]:
    """Return the index of each sample's rarest positive label (target at least 0.5); K if it has none."""
    targets = np.nan_to_num(np.stack([sample.targets for sample in samples]))
    # The strongest target counts as positive too, so that soft targets below one half still distinguish samples.
    positive = (targets >= 0.5) | ((targets == targets.max(axis=1, keepdims=True)) & (targets > 0))
    frequency = np.where(positive, positive.sum(axis=0), len(samples) + 1)
    rarest: npt.NDArray[np.int64] = np.where(positive.any(axis=1), frequency.argmin(axis=1), targets.shape[1]).astype(
        np.int64
    )
    return rarest


def hold_out(samples: Sequence[Sample], shares: Mapping[str, float], seed: int = 0) -> Splits:
    """Split samples in given proportions, stratified; each split keeps the order of `samples`.

    Args:
        samples: In a fixed order: the same order and seed give the same splits.
        shares: Split name to its share; the shares sum to 1.
        seed: Seed of the shuffle within strata; not negative.

    Raises:
        DatasetError: The shares do not sum to 1, the seed is negative, or a split would be empty.
    """
    names, parts = list(shares), np.array(list(shares.values()), dtype=np.float64)
    if not names or not (parts >= 0).all() or not abs(parts.sum() - 1) <= 1e-6:
        raise DatasetError(f"split shares {dict(shares)} must be at least 0 and sum to 1")
    if seed < 0:
        raise DatasetError(f"seed={seed}: choose a whole number of at least 0")
    if not samples:
        raise DatasetError("no samples to split")
    rng = np.random.default_rng(seed)
    assigned = np.empty(len(samples), dtype=np.int64)
    dealt = np.zeros(len(names))
    groups = strata(samples)
    for stratum in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == stratum))
        exact = parts * len(members)
        counts = np.floor(exact + 1e-9)
        open_splits = exact - counts > 1e-9
        # Samples left over by rounding go to the splits that are most behind over all strata, one each.
        for _ in range(len(members) - int(counts.sum())):
            behind = parts * (dealt.sum() + counts.sum() + 1) - dealt - counts
            split = int(np.where(open_splits, behind, -np.inf).argmax())
            counts[split] += 1
            open_splits[split] = False
        dealt += counts
        assigned[members] = np.repeat(np.arange(len(names)), counts.astype(np.int64))
    splits: Splits = {name: [] for name in names}
    for sample, where in zip(samples, assigned.tolist(), strict=True):
        splits[names[where]].append(sample)
    for name, share in shares.items():
        if share > 0 and not splits[name]:
            raise DatasetError(
                f"{len(samples)} samples are too few for split {name} ({share:.0%}); add samples or change shares"
            )
    return splits


def deal(splits: Splits, shares: Mapping[str, float] | None, seed: int, where: str) -> Splits:
    """Split a loader's samples if `shares` is given; see `hold_out`.

    Raises:
        DatasetError: There are several splits already; or as `hold_out`.
    """
    if shares is None:
        return splits
    if len(splits) > 1:
        raise DatasetError(f"{where} already has the splits {', '.join(splits)}; omit `shares`, or remove them there")
    return hold_out(next(iter(splits.values())), shares, seed)


def fold_out(samples: Sequence[Sample], folds: int, fold: int, seed: int = 0) -> Splits:
    """Cross-validation: "test" is the `fold`-th of `folds` stratified parts, "train" the rest.

    Raises:
        DatasetError: The fold does not exist, or there are too few samples.
    """
    if not 2 <= folds <= len(samples) or not 0 <= fold < folds:
        raise DatasetError(
            f"fold {fold} of {folds}: choose a fold from 0 to {folds - 1}, and 2 to {len(samples)} folds"
        )
    parts = hold_out(samples, {str(part): 1 / folds for part in range(folds)}, seed)
    test = {sample.id for sample in parts[str(fold)]}
    return {"train": [s for s in samples if s.id not in test], "test": [s for s in samples if s.id in test]}


def stratified_folds(targets: Floats, folds: int, seed: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield train and test rows of each fold; the positives of every label, rarest first, are spread evenly.

    Args:
        targets: (N, K); positive if above 0.
        folds: Number of folds; empty or complete ones are skipped.
        seed: Seed of the shuffle.

    Source: Sechidis et al., On the stratification of multi-label data, ECML 2011, without its tie-breaking.
    """
    rng = np.random.default_rng(seed)
    assigned = np.full(len(targets), -1)
    sizes = np.zeros(folds)
    positive = targets > 0
    for k in np.argsort(positive.sum(axis=0), kind="stable"):
        rows = rng.permutation(np.flatnonzero(positive[:, k] & (assigned < 0)))
        counts = np.bincount(assigned[positive[:, k] & (assigned >= 0)], minlength=folds).astype(float)
        for row in rows:
            fold = int(np.lexsort((rng.random(folds), sizes, counts))[0])
            assigned[row] = fold
            counts[fold] += 1
            sizes[fold] += 1
    for row in rng.permutation(np.flatnonzero(assigned < 0)):
        fold = int(sizes.argmin())
        assigned[row] = fold
        sizes[fold] += 1
    for fold in range(folds):
        if (assigned == fold).any() and (assigned != fold).any():
            yield np.flatnonzero(assigned != fold), np.flatnonzero(assigned == fold)
