"""Emotion datasets in their published layouts: EmotionROI-6, FI-8, ArtPhoto, Abstract, Emotion6."""

import csv
import os
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from intclip.data.find import SUFFIXES, is_excluded, is_hidden, photos_in
from intclip.data.reading import (
    Labels,
    Missing,
    Splits,
    dataset_root,
    first_existing,
    inside,
    read_text,
    settle_missing,
    share,
)
from intclip.data.sample import Dataset, Sample
from intclip.data.splitting import fold_out, hold_out
from intclip.errors import DatasetError
from intclip.labels import load_taxonomy

Root = str | os.PathLike[str] | None

_FETCH = "fetch the dataset again (docs/datasets.md)"
_LISTS = {
    "train": ("train.txt", "training.txt"),
    "val": ("val.txt", "validation.txt"),
    "test": ("test.txt", "testing.txt"),
}


def load_emotion_roi(root: Root = None, *, missing: Missing = "error") -> Dataset:
    """EmotionROI-6: 1,980 photos, one of Ekman's six emotions each, split as published (Peng et al., ICIP 2016).

    Args:
        root: Folder with `images/<emotion>/*.jpg` and `training_testing_split/{training,testing}.txt`, whose lines are
            `<emotion>/<file>`.
        missing: What to do about photos that are not there.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("emotionroi6", root, "EmotionROI")
    reader = Labels(load_taxonomy("ekman6"))
    lists = first_existing(folder, ["training_testing_split", "."], "split lists")
    splits = _listed_splits(folder / "images", lists, reader)
    if set(splits) < {"train", "test"}:
        raise DatasetError(f"{lists} holds no training.txt and testing.txt; {_FETCH}")
    splits = settle_missing(splits, missing, f"emotionroi6 in {folder}", _FETCH)
    return Dataset("emotionroi6", reader.taxonomy, "singlelabel", splits)


def load_fi8(root: Root = None, *, missing: Missing = "error", seed: int = 0) -> Dataset:
    """FI-8: 23,308 Flickr and Instagram photos, one of Mikels' eight emotions each (You et al., AAAI 2016).

    Args:
        root: Folder with `<emotion>/*.jpg`, or `{train,val,test}/<emotion>/*.jpg`. Lists `{train,val,test}.txt` with
            lines `<emotion>/<file>` are used if present; otherwise `seed` splits the data 80
            / 5 / 15 %, the paper's proportions (its split is not published).
        missing: What to do about listed photos that are not there.
        seed: Seed of the split.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("fi8", root, "FI")
    reader = Labels(load_taxonomy("mikels8"))
    lists = folder
    folder = next((folder / name for name in ("emotion_dataset", "images") if (folder / name).is_dir()), folder)
    splits = _listed_splits(folder, lists, reader)
    if splits:
        splits = settle_missing(splits, missing, f"fi8 in {folder}", _FETCH)
    elif (folder / "train").is_dir():
        names = [split for split in ("train", "val", "test") if (folder / split).is_dir()]
        splits = {split: class_folders(folder / split, reader, prefix=f"{split}/") for split in names}
    else:
        splits = hold_out(class_folders(folder, reader), {"train": 0.8, "val": 0.05, "test": 0.15}, seed)
    return Dataset("fi8", reader.taxonomy, "singlelabel", splits)


def load_artphoto(root: Root = None, *, folds: int = 5, fold: int = 0, seed: int = 0) -> Dataset:
    """ArtPhoto: 806 art photos, one of Mikels' eight emotions each, by file name (Machajdik and Hanbury 2010).

    Args:
        root: Folder with `<emotion>_<number>.jpg` (also inside `testImages_artphoto/`).
        folds: Parts of the cross-validation; the papers use 5 and publish no split.
        fold: Index of the "test" part.
        seed: Seed of the split.

    Raises:
        DatasetError: A file is missing or malformed.
    """
    folder = dataset_root("artphoto", root, "ArtPhoto")
    reader = Labels(load_taxonomy("mikels8"))
    folder = folder / "testImages_artphoto" if (folder / "testImages_artphoto").is_dir() else folder
    samples = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES:
            emotion = path.name.split("_")[0]
            samples.append(Sample(path.name, reader.targets([emotion], str(path)), path))
    if not samples:
        raise DatasetError(f"{folder} holds no photos named <emotion>_<number>.jpg; {_FETCH}")
    return Dataset("artphoto", reader.taxonomy, "singlelabel", fold_out(samples, folds, fold, seed))


def load_abstract(
    root: Root = None,
    *,
    labels: Literal["dominant", "votes"] = "dominant",
    missing: Missing = "error",
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
) -> Dataset:
    """Abstract: 280 abstract paintings with people's votes for Mikels' eight emotions (Machajdik and Hanbury, MM 2010).

    Args:
        root: Folder with `ABSTRACT_groundTruth.csv` and the paintings (also inside `testImages_abstract/`).
        labels: "dominant": the emotion with most votes; ties are dropped, which leaves
            228 paintings, as in the papers. "votes": all paintings, with the share of votes for each emotion.
        missing: What to do about photos that are not there.
        folds: Parts of the cross-validation; the papers use 5 and publish no split.
        fold: Index of the "test" part.
        seed: Seed of the split.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("abstract", root, "Abstract")
    reader = Labels(load_taxonomy("mikels8"))
    path = first_existing(
        folder, ["ABSTRACT_groundTruth.csv", "testImages_abstract/ABSTRACT_groundTruth.csv"], "ground truth"
    )
    rows = list(csv.reader(read_text(path).splitlines(), quotechar="'"))
    header = [cell.strip() for cell in rows[0]] if rows else []
    columns = [reader.index(name, f"{path}, header") for name in header[1:]]
    if len(set(columns)) != len(reader.taxonomy):
        raise DatasetError(f"{path}: its header names {len(set(columns))} of {len(reader.taxonomy)} emotions; {_FETCH}")
    samples = []
    for number, row in enumerate(rows[1:], 2):
        where = f"{path}, row {number}"
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise DatasetError(f"{where}: {len(row)} cells for {len(header)} columns; {_FETCH}")
        votes = np.zeros(len(reader.taxonomy), dtype=np.float32)
        votes[columns] = [_votes(cell, where) for cell in row[1:]]
        targets = _settle(votes, labels)
        if targets is not None:
            samples.append(Sample(row[0].strip(), targets, inside(path.parent, row[0].strip(), where), where=where))
    splits = settle_missing({"all": samples}, missing, f"abstract in {folder}", _FETCH)
    return Dataset("abstract", reader.taxonomy, "singlelabel", fold_out(splits["all"], folds, fold, seed))


def load_emotion6(
    root: Root = None,
    *,
    labels: Literal["dominant", "votes", "keyword"] = "dominant",
    missing: Missing = "error",
    seed: int = 0,
) -> Dataset:
    """Emotion6: 1,980 Flickr photos with the emotions that people felt (Peng et al., CVPR 2015).

    Args:
        root: Folder with `images/<emotion>/<number>.jpg` and the tab-separated `ground_truth.txt`: file, valence,
            arousal, and the shares of anger, disgust, fear, joy, sadness, surprise and neutral.
        labels: "dominant": the strongest of the six emotions, without ties; "votes": their
            shares, without neutral; "keyword": the folder, i.e. the search term of the photo.
        missing: What to do about photos that are not there.
        seed: Seed of the split into 80 % train and 20 % test; none is published.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("emotion6", root, "Emotion6")
    reader = Labels(load_taxonomy("ekman6"))
    path = first_existing(folder, ["ground_truth.txt"], "ground truth")
    columns = [reader.index(name, str(path)) for name in ("anger", "disgust", "fear", "joy", "sadness", "surprise")]
    samples = []
    for number, line in enumerate(read_text(path).splitlines()[1:], 2):
        where = f"{path}, row {number}"
        cells = line.split("\t") if "\t" in line else line.split()
        if not line.strip():
            continue
        if len(cells) != 10:
            raise DatasetError(
                f"{where}: {len(cells)} cells, expected 10 (file, valence, arousal, seven shares); {_FETCH}"
            )
        votes = np.zeros(len(reader.taxonomy), dtype=np.float32)
        votes[columns] = [share(cell.strip(), where) for cell in cells[3:9]]
        name = cells[0].strip()
        if labels == "keyword":
            targets = reader.targets([name.split("/")[0]], where)
        else:
            settled = _settle(votes, labels)
            if settled is None:
                continue
            targets = settled
        samples.append(Sample(name, targets, inside(folder / "images", name, where), where=where))
    splits = settle_missing({"all": samples}, missing, f"emotion6 in {folder}", _FETCH)
    return Dataset(
        "emotion6", reader.taxonomy, "singlelabel", hold_out(splits["all"], {"train": 0.8, "test": 0.2}, seed)
    )


def class_folders(folder: Path, reader: Labels, prefix: str = "") -> list[Sample]:
    """Read photos from one folder per class.

    Raises:
        DatasetError: A folder is not a label of the taxonomy, or there are no photos.
    """
    samples = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not (is_hidden(Path(path.name)) or is_excluded(Path(path.name))):
            targets = reader.targets([path.name], f"folder {path}")
            samples += [Sample(prefix + file.relative_to(folder).as_posix(), targets, file) for file in photos_in(path)]
    if not samples:
        raise DatasetError(f"{folder} holds no photos in folders named after labels; see docs/datasets.md")
    return samples


def _listed_splits(images: Path, lists: Path, reader: Labels) -> Splits:
    splits: Splits = {}
    for split, names in _LISTS.items():
        path = next((lists / name for name in names if (lists / name).is_file()), None)
        if path is None:
            continue
        samples = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip():
                where = f"{path}, row {number}"
                name = line.strip().replace("\\", "/")
                targets = reader.targets([name.split("/")[0]], where)
                samples.append(Sample(name, targets, inside(images, name, where), where=where))
        splits[split] = samples
    return splits


def _votes(cell: str, where: str) -> float:
    try:
        votes = float(cell)
    except ValueError:
        votes = -1.0
    if not 0 <= votes < 1e6:
        raise DatasetError(f"{where}: {cell!r:.40} is not a number of votes; {_FETCH}")
    return votes


def _settle(votes: npt.NDArray[np.float32], labels: str) -> npt.NDArray[np.float32] | None:
    """Convert votes to targets; None if there is a tie."""
    if labels not in ("dominant", "votes"):
        raise DatasetError(f"labels={labels!r}: choose dominant, votes, or (emotion6 only) keyword")
    if labels == "votes":
        total = votes.sum()
        return None if total == 0 else np.asarray(votes / total, dtype=np.float32)
    if (votes == votes.max()).sum() > 1:
        return None
    return np.asarray(votes == votes.max(), dtype=np.float32)
