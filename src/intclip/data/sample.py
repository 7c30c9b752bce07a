"""The sample and dataset types of all sources of photos and labels."""

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
    """A file, or a part of one, at a URL that fsspec reads: s3://, gs://, https:// and others.

    Attributes:
        url: The URL.
        name: Name of the member if the URL is a tar archive.
        offset: Start in the file.
        size: Number of bytes; None reads to the end.
    """

    url: str
    name: str | None = None
    offset: int = 0
    size: int | None = None


@dataclass(frozen=True, slots=True)
class EmbeddedPhoto:
    """A photo in a cell of a Parquet file, as in datasets of the Hugging Face hub.

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
    """A photo to read even if truncated: missing parts are grey or black.

    Attributes:
        source: Any source of `read_image`.
    """

    source: Any


ImageSource = Path | TarMember | EmbeddedPhoto
"""Location of a photo's bytes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A photo, a text, or both, with labels.

    Attributes:
        id: Unique within its dataset.
        image: Location of the photo; None for text only.
        text: Caption, post or description; None if there is none.
        targets: (K,) float32 in [0, 1]: a share of votes or 0/1; NaN where unknown.
        where: File and row that name it, for messages; empty if it was found in a folder.
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
        taxonomy: The K labels of `Sample.targets`.
        task: "multilabel", or "singlelabel" if exactly one label applies to a photo.
        splits: Split name ("train", "val", "test", or a fold) to its samples.
        positive_share: Smallest target that counts as positive; in (0, 1].

    Raises:
        DatasetError: `positive_share` is out of range.
    """

    name: str
    taxonomy: Taxonomy
    task: Literal["multilabel", "singlelabel"]
    splits: dict[str, list[Sample]] = field(repr=False)
    positive_share: float = 0.5

    def __post_init__(self) -> None:
        """Validate the share."""
        check_positive_share(self.positive_share)

    def targets(self, split: str) -> npt.NDArray[np.float32]:
        """Return targets (N, K) of a split, in order."""
        return np.stack([sample.targets for sample in self.splits[split]])


def check_labelled(samples: Sequence[Sample], dataset: str, split: str) -> None:
    """Check that some sample has a known label, which training, tuning and scoring require.

    Raises:
        DatasetError: None has.
    """
    if all(np.isnan(sample.targets).all() for sample in samples):
        raise DatasetError(
            f"none of the {len(samples)} samples of {dataset}, {split}, has a known label; label some, or "
            "choose another split"
        )


def check_one_label(samples: Sequence[Sample], taxonomy: Taxonomy, otherwise: str) -> None:
    """Check that no sample has several full labels: single-label metrics would count the first, and losses all.

    Args:
        samples: With targets in the taxonomy's order.
        taxonomy: The labels.
        otherwise: What else the user can do, for the message.

    Raises:
        DatasetError: One has.
    """
    for sample in samples:
        if len(several := np.flatnonzero(sample.targets == 1)) > 1:
            raise DatasetError(
                f"{sample.where or sample.id}: labels {', '.join(repr(taxonomy.names[k]) for k in several)}, where "
                f"exactly one applies; keep one, write shares of votes, or {otherwise}"
            )


def check_positive_share(share: float) -> None:
    """Check that a share of votes is in (0, 1]: at 0 every label would be positive, above 1 none.

    Raises:
        DatasetError: It is not.
    """
    if not 0 < share <= 1:
        raise DatasetError(f"positive_share={share:g}: choose a share of votes above 0 and up to 1, such as 0.5")
