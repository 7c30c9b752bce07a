"""One sample type and one dataset type for every source of photos and labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.errors import DatasetError
from intclip.labels.taxonomy import Taxonomy


@dataclass(frozen=True, slots=True)
class TarMember:
    """A file inside a tar archive: read by seeking, without unpacking."""

    archive: Path
    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file, or a part of one, at an address that fsspec reads: s3://, gs://, https:// and others.

    Attributes:
        url: The address.
        name: Name of the member, where the address is a tar archive's.
        offset: Where it begins in the file.
        size: Its bytes; None reads to the end.
    """

    url: str
    name: str | None = None
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedPhoto:
    """A photo whose bytes stand in a cell of a Parquet file, as in data sets of the Hugging Face hub.

    Attributes:
        table: The Parquet file.
        column: Its column: binary, or a struct with a binary field `bytes`.
        row: From 0.
        name: For messages: the struct's `path`, else "row N" counted from 1.
    """

    table: Path
    column: str
    row: int
    name: str


@dataclass(frozen=True, slots=True)
class Lenient:
    """A photo to be read even if it is truncated: what is missing becomes grey or black.

    Attributes:
        source: Whatever `read_image` takes.
    """

    source: Any


ImageSource = Path | TarMember | EmbeddedPhoto
"""Where a photo's bytes lie."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo, a text, or both, with labels.

    Attributes:
        id: Unique within its dataset.
        image: Where the photo lies; None for a text alone.
        text: Caption, post or description; None when there is none.
        targets: (K,) float32 in [0, 1]: a share of votes or 0/1; NaN where unknown.
        where: File and row that name it, for messages; empty where it was found by looking into a folder.
    """

    id: str
    targets: npt.NDArray[np.float32]
    image: ImageSource | None = None
    text: str | None = None
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Dataset:
    """Samples in splits, with the taxonomy of their labels.

    Attributes:
        name: Such as "intentonomy" or the file it came from.
        taxonomy: The K labels that `Sample.targets` are about.
        task: "multilabel", or "singlelabel" when exactly one label holds per photo.
        splits: Split name ("train", "val", "test", or a fold) to its samples.
        positive_share: A target at or above it counts as positive wherever a yes or no is needed; in (0, 1].

    Raises:
        DatasetError: `positive_share` is out of its range.
    """

    name: str
    taxonomy: Taxonomy
    task: Literal["multilabel", "singlelabel"]
    splits: dict[str, list[Sample]] = field(repr=False)
    positive_share: float = 0.5

    def __post_init__(self) -> None:
        """Hold that the share is one."""
        check_positive_share(self.positive_share)

    def targets(self, split: str) -> npt.NDArray[np.float32]:
        """Targets (N, K) of a split, in order."""
        return np.stack([sample.targets for sample in self.splits[split]])


def check_labelled(samples: Sequence[Sample], dataset: str, split: str) -> None:
    """Hold that a label of some sample is known, without which there is nothing to learn, to tune or to score.

    Raises:
        DatasetError: None is.
    """
    if all(np.isnan(sample.targets).all() for sample in samples):
        raise DatasetError(
            f"none of the {len(samples)} samples of {dataset}, {split}, has a known label; label some, or name another "
            "split"
        )


def check_positive_share(share: float) -> None:
    """Hold that a share of votes parts yes from no: from 0 on every label would count, above 1 none.

    Raises:
        DatasetError: It does not.
    """
    if not 0 < share <= 1:
        raise DatasetError(f"positive_share={share:g}: choose a share of votes above 0 and up to 1, such as 0.5")
