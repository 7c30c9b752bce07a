"""Load any dataset by name, or a user's files by path."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from intclip.data.emoset import load_emoset, load_multiemo
from intclip.data.emotion import load_abstract, load_artphoto, load_emotion6, load_emotion_roi, load_fi8
from intclip.data.intentonomy import load_intentonomy, load_proxy_intents
from intclip.data.layouts import load_coco, load_folder, load_webdataset
from intclip.data.mdid import load_mdid
from intclip.data.memes import load_memes
from intclip.data.metmeme import load_metmeme
from intclip.data.mvsa import load_mvsa
from intclip.data.openmoji import load_openmoji
from intclip.data.sample import Dataset
from intclip.data.tables import SUFFIXES
from intclip.data.tabular import load_table
from intclip.errors import DatasetError
from intclip.labels.taxonomy import Taxonomy


@dataclass(frozen=True)
class Entry:
    """A dataset that can be loaded by name.

    Attributes:
        load: Loader; takes root and keyword options.
        summary: One-line summary.
        taxonomy: Name of its taxonomy; None if it depends on the files.
        terms: Terms of use.
    """

    load: Callable[..., Dataset]
    summary: str
    taxonomy: str | None
    terms: str


_RESEARCH = "research use"
DATASETS: dict[str, Entry] = {
    "intentonomy": Entry(
        load_intentonomy, "14,455 photos, 28 intents", "intentonomy", "annotations CC BY 4.0, photos Unsplash"
    ),
    "proxy-intents": Entry(load_proxy_intents, "7,099 Flickr8k photos, 16 intents", "proxy-intents", _RESEARCH),
    "emotionroi6": Entry(load_emotion_roi, "1,980 photos, 6 emotions", "ekman6", _RESEARCH),
    "fi8": Entry(load_fi8, "23,308 photos, 8 emotions", "mikels8", _RESEARCH),
    "emoset8": Entry(load_emoset, "118,102 photos, 8 emotions", "mikels8", _RESEARCH),
    "multiemo": Entry(load_multiemo, "10,344 photos, votes for 8 emotions", "mikels8", _RESEARCH),
    "artphoto": Entry(load_artphoto, "806 art photos, 8 emotions", "mikels8", _RESEARCH),
    "abstract": Entry(load_abstract, "280 abstract paintings, 8 emotions", "mikels8", _RESEARCH),
    "emotion6": Entry(load_emotion6, "1,980 photos, shares of 6 emotions", "ekman6", _RESEARCH),
    "mdid-intent": Entry(
        partial(load_mdid, labels="intent"), "1,299 Instagram posts, 7 intents", "mdid-intent", _RESEARCH
    ),
    "mdid-semiotic": Entry(
        partial(load_mdid, labels="semiotic"), "1,299 posts, 3 semiotic relations", "mdid-semiotic", _RESEARCH
    ),
    "mdid-contextual": Entry(
        partial(load_mdid, labels="contextual"), "1,299 posts, 3 contextual relations", "mdid-contextual", _RESEARCH
    ),
    "mvsa": Entry(load_mvsa, "tweets with photo, 3 sentiments", "sentiment3", _RESEARCH),
    "metmeme": Entry(load_metmeme, "3,193 memes as words, 5 intentions", "metmeme-intent", _RESEARCH),
    "memes": Entry(load_memes, "memes, 22 persuasion techniques", "persuasion", _RESEARCH),
    "openmoji": Entry(load_openmoji, "OpenMoji drawings, Unicode's subcategories", "openmoji", "CC BY-SA 4.0"),
    "table": Entry(load_table, "your CSV, JSON lines or Parquet", None, "yours"),
    "folder": Entry(load_folder, "your photos, one folder per label", None, "yours"),
    "coco": Entry(load_coco, "your COCO-style JSON", None, "yours"),
    "webdataset": Entry(load_webdataset, "your WebDataset tars", None, "yours"),
}
"""Name to entry."""

KINDS = ("table", "folder", "coco", "webdataset")
"""File formats among them, which need a root."""


def load_dataset(name: str | os.PathLike[str], root: str | os.PathLike[str] | None = None, **options: Any) -> Dataset:
    """Load a dataset by name, or your own file or folder by path.

    Args:
        name: A key of `DATASETS`, or the path of a table (.csv, .tsv, .jsonl, .parquet), a COCO-style .json, a .tar, or
            a folder of tables, tars or class folders.
        root: Folder of a named dataset; default: its folder inside `$INTCLIP_DATA`.
        **options: Options of the loader, such as `missing="skip"`; see docs/datasets.md.

    Raises:
        DatasetError: The dataset or an option is unknown, or files are missing or malformed.
    """
    text = os.fspath(name)
    if text in DATASETS:
        kind, arguments = text, () if root is None and text not in KINDS else (root,)
        if arguments == (None,):
            raise DatasetError(f"{text}: give its path (root)")
    else:
        if root is not None and Path(text).exists():
            raise DatasetError(f"{text} is a path and takes no root; omit {os.fspath(root)} (root)")
        if root is not None or not Path(text).exists():
            near = get_close_matches(text, DATASETS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DatasetError(f"no dataset or file {text!r}: {hint}give a path or one of {', '.join(DATASETS)}")
        kind, arguments = kind_of(Path(text)), (text,)
    load = DATASETS[kind].load
    parameters = [p for p in inspect.signature(load).parameters.values() if p.kind is p.KEYWORD_ONLY]
    groups: dict[str, Any] = {p.name: p.annotation for p in parameters if is_dataclass(p.annotation)}
    known = {p.name: p.annotation for p in parameters if p.name not in groups}
    known |= {field.name: field.type for group in groups.values() for field in fields(group)}
    for option, value in options.items():
        if option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise DatasetError(f"{kind} has no option {option!r}: {hint}it takes {', '.join(known) or 'none'}")
        _check_option(option, known[option], value)
    for name, group in groups.items():
        given = {field.name for field in fields(group)} & options.keys()
        options[name] = group(**{field: options.pop(field) for field in given})
    return load(*arguments, **options)


def _check_option(name: str, kind: Any, value: Any) -> None:
    """Check that an option from the command line or a recipe has the type that its loader expects."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(value, Taxonomy):
        return
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        asked = "; ".join(dict.fromkeys(fault["msg"] for fault in error.errors(include_url=False)))
        raise DatasetError(f"option {name}={value!r:.60}: {asked[0].lower()}{asked[1:]}") from error


def kind_of(path: Path) -> str:
    """Return which of `KINDS` a user's file or folder is.

    Raises:
        DatasetError: It is none of them.
    """
    if path.is_dir():
        if any((path / f"{split}{suffix}").is_file() for split in ("train", "val", "test") for suffix in SUFFIXES):
            return "table"
        return "webdataset" if any(path.glob("*.tar")) else "folder"
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return "table"
    kinds = {".json": "coco", ".tar": "webdataset"}
    if suffix not in kinds:
        raise DatasetError(
            f"{path} is not a supported dataset; give a folder or one of {', '.join((*SUFFIXES, *kinds))}"
        )
    return kinds[suffix]
