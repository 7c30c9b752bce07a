"""Fingerprint of a run's training data, which `--resume` compares with the original one.

Stored as `data.json` in the run's directory: labels by name and everything else as SHA-256, so that a change can
be named without a copy of the data.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from intclip.backbones.base import Backbone
from intclip.data.cache_shards import photo_hashes
from intclip.data.loading import usable_cores
from intclip.data.sample import Dataset
from intclip.errors import TrainingError, reason
from intclip.files import digest, sha256_file

DATA = "data.json"
Fingerprint = dict[str, Any]


def fingerprint(dataset: Dataset, backbone: Backbone, *, masks: str | None, workers: int = 0) -> Fingerprint:
    """Return everything that a run depends on besides its recipe, in the order in which differences are reported.

    Args:
        dataset: Dataset with the run's splits.
        backbone: The frozen backbone.
        masks: The recipe's file or folder of object masks.
        workers: Threads that read photos; 0 for the number of usable cores.
    """
    parts: Fingerprint = {
        "labels": list(dataset.taxonomy.names),
        "taxonomy (levels, sentences)": digest(dataset.taxonomy.to_dict()),
        "task": dataset.task,
        "positive share": dataset.positive_share,
    }
    for split, samples in dataset.splits.items():
        targets = np.stack([sample.targets for sample in samples])
        parts[f"number of photos of {split}"] = len(samples)
        parts[f"photo ids of {split}"] = digest([sample.id for sample in samples])
        parts[f"targets of {split}"] = hashlib.sha256(targets.astype("<f4").tobytes()).hexdigest()
        parts[f"texts of {split}"] = digest([sample.text for sample in samples])
        photos = photo_hashes([sample.image for sample in samples], workers or usable_cores())
        parts[f"photo files of {split}"] = digest(photos)
    if masks is not None:
        path = Path(masks)
        files = [path] if path.is_file() else sorted(path.glob("*.png"))
        parts["object masks"] = digest([[file.name, sha256_file(file)] for file in files])
    parts["backbone weights"] = backbone.identity()
    parts["preprocessing"] = digest(backbone.preprocess.model_dump(mode="json"))
    return parts


def check_unchanged(out: Path, now: Fingerprint) -> None:
    """Reject resuming a run on data that differ from its original data.

    Raises:
        TrainingError: Data differ (the difference is named), or the run's own fingerprint is missing or damaged.
    """
    remedy = "resume with the data it began with, or choose another --out"
    try:
        before = json.loads((out / DATA).read_text(encoding="utf-8"))
        names = dict.fromkeys([*now, *before])
    except (OSError, ValueError) as error:
        raise TrainingError(f"{out / DATA} cannot be read ({reason(error)}); choose another --out") from error
    for name in names:
        if before.get(name) != now.get(name):
            raise TrainingError(
                f"the run in {out} was trained on other data: its {name} differ"
                f"{_labels(before, now) if name == 'labels' else ''}; {remedy}"
            )


def _labels(before: Fingerprint, now: Fingerprint) -> str:
    old, new = before["labels"], now["labels"]
    if len(old) != len(new):
        return f" ({len(old)} there, {len(new)} here)"
    k = next(k for k, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
    return f" (label {k + 1} is {old[k]!r} there, {new[k]!r} here)"
