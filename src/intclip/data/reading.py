"""Shared parts of dataset loaders: locating and reading files, labels to targets, missing photos."""

import codecs
import json
import logging
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.data.sample import EmbeddedPhoto, ImageSource, Sample, TarMember
from intclip.errors import DatasetError, TaxonomyError, reason
from intclip.labels.reading import parse_taxonomy
from intclip.labels.taxonomy import Taxonomy

DATA_VARIABLE = "INTCLIP_DATA"
"""Environment variable for the parent folder of datasets."""

Missing = Literal["error", "skip", "keep"]
"""How to treat missing photos of annotations."""

Splits = dict[str, list[Sample]]

_BYTE_ORDER_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_log = logging.getLogger("intclip.data")


def dataset_root(name: str, root: str | os.PathLike[str] | None, folder: str) -> Path:
    """Return the folder of a dataset: `root`, or `folder` inside `$INTCLIP_DATA`.

    Raises:
        DatasetError: Neither is given, or the folder does not exist.
    """
    if root is None:
        data = os.environ.get(DATA_VARIABLE)
        if not data:
            raise DatasetError(f"{name}: unknown location; give its folder (root), or set {DATA_VARIABLE}")
        if not Path(data).expanduser().is_dir():
            raise DatasetError(f"{DATA_VARIABLE} names {data}, which is not a folder; correct or unset it")
        root = Path(data) / folder
    root = Path(root).expanduser()
    if not root.exists():
        raise DatasetError(f"{name}: no such file or folder: {root}; see docs/datasets.md for its layout")
    return root


def first_existing(root: Path, names: Iterable[str], what: str) -> Path:
    """Return the first existing path under `root`.

    Raises:
        DatasetError: None exists.
    """
    names = list(names)
    for name in names:
        if (root / name).exists():
            return root / name
    raise DatasetError(f"{root} has no {what}; expected {' or '.join(names)} (see docs/datasets.md)")


def loader_option(key: str, value: Any) -> str:
    """Return how to pass a loader option, for messages: in data commands, in training, in Python."""
    option = f"{key}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
    return (
        f"`--set {shlex.quote(option)}` (intclip data, evaluate, fit), "
        f"`--set {shlex.quote(f'data.options.{option}')}` (intclip train) or {key}={value!r} (Python)"
    )


def read_text(path: Path, encoding: str = "utf-8-sig", *, encodable: bool = False) -> str:
    """Read a text file.

    Args:
        path: The file.
        encoding: Encoding of the file.
        encodable: Whether the loader has an option `encoding`, for messages.

    Raises:
        DatasetError: It cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {reason(error)}; check path and permission") from error
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        marked = next((name for mark, name in _BYTE_ORDER_MARKS if content.startswith(mark)), None)
        if marked is not None and marked != encoding.lower():
            fault = f"{path} is {marked.upper()}, not {encoding.removesuffix('-sig').upper()}"
        else:
            row = content.count(b"\n", 0, error.start) + 1
            fault = (
                f"{path}, row {row}: byte {content[error.start]:#04x} is not {encoding.removesuffix('-sig').upper()}"
            )
        remedy = f", or give its encoding, such as {loader_option('encoding', marked or 'latin-1')}"
        raise DatasetError(f"{fault}; save the file as UTF-8{remedy if encodable else ''}") from error
    except (LookupError, UnicodeError) as error:  # some Python codecs are not text encodings
        raise DatasetError(f"unknown encoding {encoding!r}; use a name such as utf-8 or latin-1") from error


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DatasetError: It cannot be read or is not JSON.
    """
    return parse_json(read_text(path), str(path), whole_file=True)


def parse_json(text: str, where: str, *, whole_file: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: Text of a file, a row or a cell.
        where: File and row, for messages.
        whole_file: Whether messages count the text's rows; for a row or cell, `where` has the row.

    Raises:
        DatasetError: It is not JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{where}, row {error.lineno}" if whole_file else where
        fault = f"{error.msg} at character {error.colno if whole_file else error.pos + 1}"
        raise DatasetError(f"{place}: not JSON ({fault}); fetch or write it again") from error
    except (ValueError, RecursionError) as error:  # integers of thousands of digits; deep nesting
        raise DatasetError(f"{where}: unreadable JSON ({error}); fetch or write it again") from error


def load_array(path: Path) -> npt.NDArray[Any]:
    """Read an array from a .npy file, without pickle.

    Raises:
        DatasetError: It cannot be read.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f"cannot read {path} as a NumPy array: {reason(error)}; fetch or write it again") from error
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"{path} has several arrays; save one array with numpy.save")
    return array


class Labels:
    """Converts label names in files to targets of a taxonomy.

    Args:
        taxonomy: The K labels.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._classes = len(taxonomy)
        self._known: dict[str, int] = {}

    def index(self, label: Any, where: str) -> int:
        """Return the index of a label given by name, alias or number.

        Raises:
            DatasetError: The label is unknown; the closest names are suggested.
        """
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DatasetError(f"{where}: {label!r:.60} is not a label; write its name")
        if isinstance(label, int):
            if not 0 <= label < self._classes:
                last = self._classes - 1
                raise DatasetError(
                    f"{where}: label number {label} is outside taxonomy {self.taxonomy.name} (0 to {last})"
                )
            return label
        if label not in self._known:
            try:
                self._known[label] = self.taxonomy.index(label)
            except TaxonomyError as error:
                raise DatasetError(f"{where}: {error}") from error
        return self._known[label]

    def targets(self, labels: Iterable[Any], where: str) -> npt.NDArray[np.float32]:
        """Return (K,) float32: 1 for the given labels, 0 for all others.

        Raises:
            DatasetError: A label is not in the taxonomy.
        """
        targets = np.zeros(self._classes, dtype=np.float32)
        for label in labels:
            targets[self.index(label, where)] = 1
        return targets

    def unknown(self) -> npt.NDArray[np.float32]:
        """Return (K,) float32 NaN: unlabelled."""
        return np.full(self._classes, np.nan, dtype=np.float32)


def share(value: Any, where: str) -> float:
    """Parse a share of votes in [0, 1]; NaN if unknown: empty, or −1 as in partially labelled datasets.

    Raises:
        DatasetError: The value is invalid.
    """
    words = {
        "": np.nan,
        "true": 1.0,
        "yes": 1.0,
        "false": 0.0,
        "no": 0.0,
        "nan": np.nan,
        "none": np.nan,
        "null": np.nan,
    }
    if value is None:
        return float("nan")
    if isinstance(value, str) and value.strip().lower() in words:
        return float(words[value.strip().lower()])
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("inf")
    if number == -1 or number != number:
        return float("nan")
    if not 0 <= number <= 1:
        raise DatasetError(
            f"{where}: {value!r:.60} is not a share from 0 to 1; write 0, 1, a share, or leave it empty if unknown"
        )
    return number


def settle_missing(splits: Splits, missing: Missing, where: str, remedy: str, gone: Sequence[str] = ()) -> Splits:
    """Treat samples with missing photos.

    Args:
        splits: Samples; those without a photo are kept.
        missing: "error" raises, "skip" drops such samples and logs how many, "keep" keeps them.
        where: The dataset, for messages.
        remedy: How to get the photos.
        gone: Ids of photos known to be gone: dropped even with "error".

    Raises:
        DatasetError: A photo is missing and `missing` is "error"; or no sample is left.
    """
    if missing not in ("error", "skip", "keep"):
        raise DatasetError(f"missing={missing!r}: choose error, skip or keep")
    if missing == "keep":
        return splits
    known = set(gone)
    absent = absent_photos(splits)
    unexpected = [sample for sample in absent if sample.id not in known]
    total = sum(sample.image is not None for samples in splits.values() for sample in samples)
    if missing == "error" and unexpected:
        first = unexpected[0]
        raise DatasetError(
            f"{where}: {len(unexpected)} of {total} photos are missing, the first is {first.image}"
            f"{first.where and f' ({first.where})'}; {remedy}, or skip them: {loader_option('missing', 'skip')}"
        )
    if absent:
        left_out = {sample.id for sample in absent}
        splits = {split: [s for s in samples if s.id not in left_out] for split, samples in splits.items()}
        if not any(splits.values()):
            raise DatasetError(f"{where}: all {total} photos are missing; {remedy}")
        _log.warning("%s: skipped %d of %d photos, which are missing", where, len(absent), total)
    return splits


def absent_photos(splits: Splits) -> list[Sample]:
    """Return the samples with missing photos."""
    return [s for samples in splits.values() for s in samples if s.image is not None and not is_there(s.image)]


def is_there(image: ImageSource) -> bool:
    """Return whether a photo's file or its archive exists."""
    if isinstance(image, EmbeddedPhoto):
        return image.table.is_file()
    return os.path.isfile(image.archive if isinstance(image, TarMember) else image)  # noqa: PTH113 (fast)


def flat_taxonomy(names: Sequence[str], where: str, name: str) -> Taxonomy:
    """Make a one-level taxonomy from the labels in a user's files.

    Raises:
        DatasetError: A name is empty, too long, or differs from another by letter case only.
    """
    try:
        return parse_taxonomy([{"name": label} for label in names], where, name=name)
    except TaxonomyError as error:
        raise DatasetError(str(error)) from error


def inside(root: Path, name: str, where: str) -> Path:
    """Return `root / name`, which must be inside `root`.

    Raises:
        DatasetError: It is outside, or not a path.
    """
    path = Path(name)
    if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
        raise DatasetError(f"{where}: file name {name!r:.100} is outside the dataset's folder; correct it")
    return root / path


def require_keys(item: Any, keys: Mapping[str, type | tuple[type, ...]], where: str) -> None:
    """Check that a JSON value is an object with these keys of these types.

    Raises:
        DatasetError: It is not.
    """
    if not isinstance(item, dict):
        of_keys = f" with {', '.join(keys)}" if keys else ""
        raise DatasetError(f"{where}: expected an object{of_keys}, found {item!r:.60}")
    for key, kind in keys.items():
        if key not in item:
            raise DatasetError(f"{where}: no {key!r}; expected {', '.join(keys)}")
        if not isinstance(item[key], kind):
            raise DatasetError(f"{where}: {key!r} is {item[key]!r:.60}, of the wrong type")
