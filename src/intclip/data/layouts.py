"""Common layouts other than tables: image folders, COCO-style JSON, WebDataset tars."""

import os
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from intclip.data.emotion import class_folders
from intclip.data.find import SUFFIXES, is_excluded
from intclip.data.reading import (
    Labels,
    Missing,
    Splits,
    flat_taxonomy,
    inside,
    loader_option,
    parse_json,
    read_json,
    require_keys,
    settle_missing,
)
from intclip.data.sample import Dataset, Sample, TarMember
from intclip.data.splitting import deal
from intclip.data.tables import Row, find_columns, make_row
from intclip.data.tabular import dataset_from_rows
from intclip.errors import DatasetError, reason
from intclip.labels import load_taxonomy
from intclip.labels.reading import parse_taxonomy
from intclip.labels.taxonomy import Taxonomy

_COCO_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "categories": {"id": (int, str), "name": str},
    "images": {"id": (int, str), "file_name": str},
    "annotations": {"image_id": (int, str), "category_id": (int, str)},
}
SPLIT_NAMES = ("train", "val", "test")


def load_folder(
    root: str | os.PathLike[str],
    *,
    taxonomy: str | Taxonomy | None = None,
    name: str | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Dataset:
    """Load photos from `root/<label>/…` or, with splits, from `root/{train,val,test}/<label>/…`.

    Args:
        root: The folder.
        taxonomy: Name or file of the taxonomy; default: the folders' names in alphabetical order.
        name: Name of the dataset; default: the folder's.
        shares: Proportions for splitting a folder without split folders; otherwise all is "train".
        seed: Seed of that split.

    Raises:
        DatasetError: There are no class folders or photos, or a folder is not named after a label.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DatasetError(f"no such folder: {folder}; check the path")
    parts = {split: folder / split for split in SPLIT_NAMES if (folder / split).is_dir()} or {"train": folder}
    if taxonomy is None:
        classes = {
            path.name
            for part in parts.values()
            for path in part.iterdir()
            if path.is_dir() and path.name[0] != "." and not is_excluded(Path(path.name))
        }
        if not classes:
            raise DatasetError(
                f"{folder} has no folders named after labels; put photos into <label>/ (docs/datasets.md)"
            )
        taxonomy = flat_taxonomy(sorted(classes), str(folder), folder.name)
    reader = Labels(load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy)
    splits = {
        split: class_folders(part, reader, prefix=f"{split}/" if len(parts) > 1 else "")
        for split, part in parts.items()
    }
    splits = deal(splits, shares, seed, str(folder))
    return Dataset(name or folder.name, reader.taxonomy, "singlelabel", splits)


def load_coco(
    root: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    taxonomy: str | Taxonomy | None = None,
    name: str | None = None,
    images: str | os.PathLike[str] | None = None,
    missing: Missing = "error",
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Dataset:
    """Load COCO-style JSON: photos, categories (under supercategories), and annotations.

    It uses `images` (id, file_name), `categories` (id, name, supercategory), `annotations` (image_id,
    category_id). A photo's labels are the categories of its annotations; boxes and masks are ignored. A photo without
    annotations has no labels.

    Args:
        root: The file, or split name to file.
        taxonomy: Name or file of the taxonomy; default: the categories, under their supercategories.
        name: Name of the dataset; default: the file's.
        images: Folder that file names are relative to; default: the JSON's folder.
        missing: How to treat missing photos.
        shares: Proportions for splitting a single file; otherwise all is "train".
        seed: Seed of that split.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    files = {str(k): Path(v) for k, v in root.items()} if isinstance(root, Mapping) else {"train": Path(root)}
    contents = {split: _coco_content(path) for split, path in files.items()}
    first = next(iter(files.values()))
    if taxonomy is None:
        taxonomy = _coco_taxonomy(contents.values(), str(first), first.stem)
    reader = Labels(load_taxonomy(taxonomy) if isinstance(taxonomy, str) else taxonomy)
    splits: Splits = {}
    for split, path in files.items():
        base = Path(images) if images is not None else path.parent
        splits[split] = _coco_samples(contents[split], path, base, reader)
    splits = deal(splits, shares, seed, str(first))
    splits = settle_missing(
        splits, missing, str(first), f"correct the file names, or give {loader_option('images', 'FOLDER')}"
    )
    return Dataset(name or first.stem, reader.taxonomy, "multilabel", splits)


def load_webdataset(
    root: str | os.PathLike[str],
    *,
    taxonomy: str | Taxonomy | None = None,
    name: str | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    positive_share: float = 0.5,
) -> Dataset:
    """Load WebDataset tars: members with equal names up to the first dot are one sample.

    A sample has a photo (`.jpg`, `.png`, …), and labels in `.json` (an object with the columns of a table, see
    `intclip.data.tables`) or `.cls` (a label's name or number); `.txt` is its text. Tars named `train*`, `val*` or
    `test*` are that split, others "train".

    Args:
        root: A tar, or a folder of tars.
        taxonomy: Name or file of the taxonomy; default: the labels found; `.cls` numbers need it.
        name: Name of the dataset; default: the file's or folder's.
        shares: Proportions for dividing a single split.
        seed: Seed of that split.
        positive_share: Smallest share of votes of a positive label.

    Raises:
        DatasetError: A tar is missing or damaged, or a sample is malformed.
    """
    path = Path(root)
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars or not tars[0].is_file():
        raise DatasetError(f"{path} has no .tar file; give a tar or a folder of tars")
    tables: dict[str, list[Row]] = {}
    members: dict[str, TarMember] = {}
    for tar in tars:
        split = next((s for s in SPLIT_NAMES if tar.stem.startswith(s)), "train")
        for row, member in _tar_rows(tar):
            if member is not None:
                members[row.known["id"]] = member
            tables.setdefault(split, []).append(row)
    dataset = dataset_from_rows(
        tables, dict.fromkeys(tables, Path()), name=name or path.stem, where=str(path), taxonomy=taxonomy,
        positive_share=positive_share,
    )  # fmt: skip
    splits = {
        split: [replace(sample, image=members.get(sample.id)) for sample in samples]
        for split, samples in deal(dataset.splits, shares, seed, str(path)).items()
    }
    return replace(dataset, splits=splits)


def index_tar(path: Path) -> dict[str, dict[str, TarMember]]:
    """Group an uncompressed tar's members into samples: key to extension (lower case) to member, in order.

    Raises:
        DatasetError: It is missing, compressed, damaged or truncated.
    """
    samples: dict[str, dict[str, TarMember]] = {}
    try:
        size = path.stat().st_size
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                if not info.isreg() or Path(info.name).name.startswith("."):
                    continue
                if info.offset_data + info.size > size:
                    raise DatasetError(f"{path} is truncated inside {info.name!r}; fetch it again")
                folder, _, file = info.name.rpartition("/")
                stem, _, extension = file.partition(".")
                key = f"{folder}/{stem}" if folder else stem
                member = TarMember(path, info.name, info.offset_data, info.size)
                if samples.setdefault(key, {}).setdefault(extension.lower(), member) is not member:
                    raise DatasetError(f"{path}: {info.name!r} occurs twice; remove one")
    except tarfile.TarError as error:
        raise DatasetError(
            f"{path} is not an uncompressed tar, or is damaged ({reason(error)}); fetch or unpack it again"
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {reason(error)}; check the path") from error
    except (ValueError, OverflowError) as error:  # invalid numbers in a damaged header
        raise DatasetError(f"{path} is damaged ({reason(error)}); fetch it again") from error
    if not samples:
        raise DatasetError(f"{path} is empty; fetch it again")
    return samples


def _tar_rows(path: Path) -> list[tuple[Row, TarMember | None]]:
    rows = []
    for key, files in index_tar(path).items():
        where = f"{path}, sample {key!r}"
        photo = next(
            (member for extension, member in files.items() if f".{extension.rpartition('.')[2]}" in SUFFIXES), None
        )
        record: dict[str, Any] = {}
        if "json" in files:
            content = parse_json(_text_member(files["json"], where), where, whole_file=True)
            record = {str(k): v for k, v in content.items()} if isinstance(content, dict) else {"labels": content}
        if "cls" in files:
            label = _text_member(files["cls"], where).strip()
            record["label"] = int(label) if label.isdecimal() and len(label) < 9 else label
        if "txt" in files:
            record["text"] = _text_member(files["txt"], where)
        record["id"] = key
        if photo is not None:
            record["image"] = photo.name
        if photo is None and not record.get("text"):
            raise DatasetError(f"{where}: neither photo nor text; remove it")
        found = find_columns(list(record), {"image": "image"} if photo is not None else None, where)
        rows.append((make_row(where, record, {**found, "id": "id"}), photo))
    return rows


def _text_member(member: TarMember, where: str) -> str:
    with member.archive.open("rb") as archive:
        archive.seek(member.offset)
        content = archive.read(member.size)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where}: {member.name} is not UTF-8; write the tar again") from error


def _coco_content(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    require_keys(content, {"images": list, "categories": list, "annotations": list}, str(path))
    for key, fields in _COCO_FIELDS.items():
        for number, item in enumerate(content[key], 1):
            require_keys(item, fields, f"{path}, {key} {number}")
    return dict(content)


def _coco_taxonomy(contents: Any, where: str, name: str) -> Taxonomy:
    groups: dict[str, str | None] = {}
    for content in contents:
        for category in content["categories"]:
            group = category.get("supercategory")
            groups.setdefault(category["name"], group if isinstance(group, str) and group else None)
    if not groups:
        raise DatasetError(f"{where}: no categories; add them")
    if any(group is None for group in groups.values()):
        return flat_taxonomy(list(groups), where, name)
    classes = [{"name": label, "parent": group} for label, group in groups.items()]
    return parse_taxonomy(
        {"name": name, "parents": {"supercategory": list(dict.fromkeys(groups.values()))}, "classes": classes},
        where,
        name=name,
    )


def _coco_samples(content: Mapping[str, Any], path: Path, base: Path, reader: Labels) -> list[Sample]:
    columns = {c["id"]: reader.index(c["name"], f"{path}, category {c['name']!r}") for c in content["categories"]}
    targets = {image["id"]: np.zeros(len(reader.taxonomy), dtype=np.float32) for image in content["images"]}
    samples: dict[int | str, Sample] = {}
    for number, image in enumerate(content["images"], 1):
        where = f"{path}, image {number}"
        if (first := samples.get(image["id"])) is not None:
            raise DatasetError(f"{where}: id {image['id']!r} is there already ({first.where}); make ids unique")
        photo = inside(base, image["file_name"], where)
        samples[image["id"]] = Sample(str(image["id"]), targets[image["id"]], photo, where=where)
    for number, annotation in enumerate(content["annotations"], 1):
        where = f"{path}, annotation {number}"
        if annotation["image_id"] not in targets:
            raise DatasetError(f"{where}: image {annotation['image_id']!r} is not among the file's images; correct it")
        if annotation["category_id"] not in columns:
            raise DatasetError(
                f"{where}: category {annotation['category_id']!r} is not among the categories; correct it"
            )
        targets[annotation["image_id"]][columns[annotation["category_id"]]] = 1
    return list(samples.values())
