"""Intentonomy's annotation format: Intentonomy itself, and the proxy intents on Flickr8k.

One JSON file per split with `categories` (id, name), `images` (id, filename, unsplash_url) and `annotations` (image_id
and either `category_ids` or `category_ids_softprob`, a share of votes for each category). Source: KMnP/intentonomy,
DATA.md (Jia et al., CVPR 2021).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from intclip.data.reading import (
    Labels,
    Missing,
    Splits,
    dataset_root,
    first_existing,
    inside,
    load_array,
    read_json,
    require_keys,
    settle_missing,
    share,
)
from intclip.data.sample import Dataset, Sample
from intclip.errors import DatasetError
from intclip.labels import load_taxonomy
from intclip.labels.taxonomy import Taxonomy

SPLITS = ("train", "val", "test")
REPORT = "prepare-report.json"
"""Report of `intclip data prepare` in the dataset's folder; photos listed as gone are not requested again."""

_LABEL_MATRIX = "train_label_vectors_intentonomy2020.npy"
_PREPARE = "get them with `intclip data prepare intentonomy`"


@dataclass(frozen=True)
class AnnotatedPhoto:
    """One photo of an annotation file.

    Attributes:
        id: Id of the photo.
        filename: Relative to the photos' folder.
        url: Its URL, if any.
        targets: (K,) in the taxonomy's order.
        where: File and number of the record, for messages.
    """

    id: str
    filename: str
    url: str | None
    targets: npt.NDArray[np.float32]
    where: str


def read_annotations(path: Path, taxonomy: Taxonomy) -> list[AnnotatedPhoto]:
    """Read the photos of an annotation file, in order.

    Raises:
        DatasetError: The file is malformed, or names an unknown category or photo.
    """
    reader = Labels(taxonomy)
    content, columns = _read_categories(path, reader)
    targets = _targets(path, content["annotations"], columns, reader)
    photos: dict[str, AnnotatedPhoto] = {}
    for number, image in enumerate(content["images"], 1):
        where = f"{path}, image {number}"
        require_keys(image, {"id": (int, str), "filename": str}, where)
        url = image.get("unsplash_url")
        inside(Path(), image["filename"], where)
        if (first := photos.get(str(image["id"]))) is not None:
            raise DatasetError(f"{where}: id {str(image['id'])!r} is there already ({first.where}); make ids unique")
        known = targets.get(str(image["id"]))
        photos[str(image["id"])] = AnnotatedPhoto(
            id=str(image["id"]),
            filename=image["filename"],
            url=url if isinstance(url, str) else None,
            targets=reader.unknown() if known is None else known,
            where=where,
        )
    astray = [(number, image) for number, image in enumerate(targets, 1) if image not in photos]
    if astray:
        raise DatasetError(
            f"{path}, annotation {astray[0][0]}: photo {astray[0][1]!r} is not among the file's images; {len(astray)} "
            "annotations name missing photos; remove them or add the images"
        )
    return list(photos.values())


def _read_categories(path: Path, reader: Labels) -> tuple[Any, dict[Any, int]]:
    """Read an annotation file and map its category ids to columns."""
    content = read_json(path)
    require_keys(content, {"categories": list, "images": list, "annotations": list}, str(path))
    columns: dict[Any, int] = {}
    for number, category in enumerate(content["categories"], 1):
        where = f"{path}, category {number}"
        require_keys(category, {"id": (int, str), "name": str}, where)
        columns[category["id"]] = reader.index(category["name"], where)
    if len(set(columns.values())) < len(content["categories"]):
        raise DatasetError(f"{path}: two categories have the same id or label; make them unique")
    return content, columns


def _targets(
    path: Path, annotations: Sequence[Any], columns: dict[Any, int], reader: Labels
) -> dict[str, npt.NDArray[np.float32]]:
    targets: dict[str, npt.NDArray[np.float32]] = {}
    order = list(columns.values())
    for number, annotation in enumerate(annotations, 1):
        where = f"{path}, annotation {number}"
        require_keys(annotation, {"image_id": (int, str)}, where)
        image = str(annotation["image_id"])
        if image in targets:
            raise DatasetError(f"{where}: photo {image!r} is annotated twice; keep one annotation")
        soft, ids = annotation.get("category_ids_softprob"), annotation.get("category_ids")
        if isinstance(soft, list):
            if len(soft) != len(columns):
                raise DatasetError(f"{where}: {len(soft)} shares for {len(columns)} categories; give one for each")
            row = reader.unknown()
            row[order] = [share(value, where) for value in soft]
        elif isinstance(ids, list):
            row = reader.unknown()
            row[order] = 0
            for category in ids:
                if not isinstance(category, int | str) or category not in columns:
                    raise DatasetError(f"{where}: category {category!r} is not among the file's categories; correct it")
                row[columns[category]] = 1
        else:
            raise DatasetError(f"{where}: no 'category_ids' or 'category_ids_softprob'; add one of them")
        targets[image] = row
    return targets


def load_intentonomy(
    root: str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "error",
    positive_share: float = 0.3,
    train_labels: Literal["votes", "binary"] = "votes",
    text: bool = True,
) -> Dataset:
    """Intentonomy: 12,740 / 498 / 1,217 photos, 28 intents, multi-label (Jia et al., CVPR 2021).

    Args:
        root: Folder with `intentonomy_{train,val,test}2020.json` (existing ones are loaded;
            also in `annotations/`) and the photos at their `filename` (also in `images/`).
        missing: How to treat missing photos. Those reported as gone by `intclip
            data prepare` are skipped unless "keep".
        positive_share: Smallest positive share of the three votes (0, 1/3, 2/3, 1): 0.3 requires one vote, as in the
            released code of IntCLIP and HLEG; 0.6 requires two.
        train_labels: "votes" from the annotations, or "binary" from `train_label_vectors_intentonomy2020.npy`, rows in
            the order of the annotations. If only the matrix exists, its rows become samples
            without photos, for label statistics.
        text: Use descriptions from `descriptions_{split}.json` as text, if present.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("intentonomy", root, "intentonomy")
    taxonomy = load_taxonomy("intentonomy")
    splits: Splits = {}
    for split in SPLITS:
        path = annotation_file(folder, f"intentonomy_{split}2020.json")
        if path is not None:
            splits[split] = _samples(
                folder, read_annotations(path, taxonomy), f"descriptions_{split}.json" if text else None
            )
    matrix = annotation_file(folder, _LABEL_MATRIX)
    if train_labels == "binary" or (matrix is not None and "train" not in splits):
        if matrix is None:
            raise DatasetError(f"{folder} has no {_LABEL_MATRIX}; add it or use train_labels='votes'")
        splits["train"] = _binary_train(load_array(matrix), splits.get("train"), matrix, taxonomy)
    elif train_labels != "votes":
        raise DatasetError(f"train_labels={train_labels!r}: choose votes or binary")
    if not splits:
        first_existing(folder, [f"intentonomy_{split}2020.json" for split in SPLITS], "annotations of Intentonomy")
    splits = {split: splits[split] for split in SPLITS if split in splits}
    splits = settle_missing(splits, missing, f"intentonomy in {folder}", _PREPARE, gone_photos(folder))
    return Dataset("intentonomy", taxonomy, "multilabel", splits, positive_share)


def load_proxy_intents(
    root: str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "error",
    positive_share: float = 0.4,
    captions: Literal["first", "all", "none"] = "first",
) -> Dataset:
    """Proxy intents: 6,091 / 1,008 Flickr8k photos, 16 intents derived from five captions each with word lists.

    The taxonomy has the labels that the files name.

    Args:
        root: Folder with `intents_{train,val}.json`, `captions_{train,val}.json`, optionally those of
            `test`, and the photos.
        missing: How to treat missing photos.
        positive_share: Smallest positive share of the five captions; default: two, as in val.
        captions: Text of a sample: its first caption, all five (one per line), or none. The captions contain the
            labels, so a text model sees the answer.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("proxy-intents", root, "flickr8k")
    taxonomy = _named_by(folder, load_taxonomy("proxy-intents"))
    if captions not in ("first", "all", "none"):
        raise DatasetError(f"captions={captions!r}: choose first, all or none")
    splits: Splits = {}
    for split in SPLITS:
        path = annotation_file(folder, f"intents_{split}.json")
        if path is not None:
            photos = read_annotations(path, taxonomy)
            splits[split] = _samples(folder, photos, None if captions == "none" else f"captions_{split}.json", captions)
    if not splits:
        first_existing(folder, [f"intents_{split}.json" for split in SPLITS], "proxy intents")
    splits = settle_missing(
        splits, missing, f"proxy-intents in {folder}", "put Flickr8k's photos into its images/ folder"
    )
    return Dataset("proxy-intents", taxonomy, "multilabel", splits, positive_share)


def _named_by(folder: Path, taxonomy: Taxonomy) -> Taxonomy:
    """Return the taxonomy without classes that no annotation file in the folder names."""
    named: set[str] = set()
    for split in SPLITS:
        if (path := annotation_file(folder, f"intents_{split}.json")) is not None:
            named |= {taxonomy.names[column] for column in _read_categories(path, Labels(taxonomy))[1].values()}
    return taxonomy.only(named) if named else taxonomy


def annotation_file(folder: Path, name: str) -> Path | None:
    """Find a file in the dataset's folder or its `annotations/`; None if missing."""
    return next((path for path in (folder / name, folder / "annotations" / name) if path.is_file()), None)


def gone_photos(folder: Path) -> list[str]:
    """Return ids of photos that `intclip data prepare` found gone."""
    path = folder / REPORT
    if not path.is_file():
        return []
    report = read_json(path)
    require_keys(report, {"gone": list}, str(path))
    return [str(item.get("id")) for item in report["gone"] if isinstance(item, dict)]


def _samples(folder: Path, photos: Sequence[AnnotatedPhoto], texts: str | None, captions: str = "all") -> list[Sample]:
    path = annotation_file(folder, texts) if texts else None
    text: dict[str, Any] = {}
    if path is not None:
        text = read_json(path)
        require_keys(text, {}, str(path))
    base = folder / "images" if not any((folder / photo.filename).is_file() for photo in photos[:50]) else folder
    if base != folder and not any((base / photo.filename).is_file() for photo in photos[:50]):
        base = folder
    return [
        Sample(photo.id, photo.targets, base / photo.filename, _one_text(text.get(photo.id), captions), photo.where)
        for photo in photos
    ]


def _one_text(value: Any, captions: str) -> str | None:
    if isinstance(value, list) and value:
        return str(value[0]) if captions == "first" else "\n".join(map(str, value))
    return value if isinstance(value, str) else None


def _binary_train(matrix: npt.NDArray[Any], train: list[Sample] | None, path: Path, taxonomy: Taxonomy) -> list[Sample]:
    if matrix.ndim != 2 or matrix.shape[1] != len(taxonomy) or not np.isin(matrix, (0, 1)).all():
        raise DatasetError(f"{path} has {matrix.shape} {matrix.dtype}; expected 0 and 1 in (photos, {len(taxonomy)})")
    rows = matrix.astype(np.float32)
    if train is None:
        return [Sample(f"train-{number:05d}", row) for number, row in enumerate(rows)]
    if len(train) != len(rows):
        raise DatasetError(f"{path} has {len(rows)} rows for {len(train)} train photos; get the matching file")
    return [replace(sample, targets=row) for sample, row in zip(train, rows, strict=True)]
