"""MDID: 1,299 Instagram posts with intents and relations of text and photo, in five published folds.

Source: karansikka1/documentIntent_emnlp19 (Kruk et al., EMNLP 2019). The photos are not public; each post's pooled
ResNet-18 features are.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from intclip.data.reading import (
    Labels,
    Splits,
    dataset_root,
    first_existing,
    inside,
    load_array,
    read_json,
    require_keys,
)
from intclip.data.sample import Dataset, Sample
from intclip.data.tabular import TableLayout, load_table
from intclip.errors import DatasetError
from intclip.labels import load_taxonomy

_KEYS = {"intent": "intent", "semiotic": "semiotic", "contextual": "imgTxt"}
_RELEASED = {
    "provoke": "provocative",
    "inform": "informative",
    "advocate": "advocative",
    "entertain": "entertainment",
    "expose": "expositive",
    "express": "expressive",
    "promote": "promotive",
}
"""Verbs used in the released files to the paper's intents."""

FEATURES = "resnet18_feat"
"""Folder of the published features: `<filename>.npy`, one vector per post."""


def load_mdid(
    root: str | os.PathLike[str] | None = None,
    *,
    labels: Literal["intent", "semiotic", "contextual"] = "intent",
    fold: int = 0,
    caption: Literal["caption", "orig_caption"] = "caption",
) -> Dataset:
    """One fold of MDID: "train" (about 1,040 posts) and "test" (about 259; the files call it val).

    Args:
        root: Folder with `splits_new/{train,val}_split_{0…4}.json` (or `splits/`) as published; photos,
            if available, in `images/`. Samples without a photo have only text; see `mdid_features` for the published
            features. Or a folder with `train.csv` and optionally `test.csv` (text, intent, semiotic, contextual) with
            the captions of fold 0.
        labels: Taxonomy: 7 intents, 3 semiotic or 3 contextual relations.
        fold: 0 to 4; the paper reports the mean over the five.
        caption: The paper's cleaned caption, or the original one with hashtags and emoji.

    Raises:
        DatasetError: A file is missing or malformed.
    """
    folder = dataset_root("mdid", root, "mdid")
    if labels not in _KEYS or caption not in ("caption", "orig_caption") or fold not in range(5):
        raise DatasetError(
            f"mdid: labels={labels!r}, fold={fold!r}, caption={caption!r}: choose labels intent, semiotic or "
            "contextual, fold 0 to 4, and caption or orig_caption"
        )
    reader = Labels(load_taxonomy(f"mdid-{labels}"))
    if (folder / "train.csv").is_file():
        return _tables(folder, labels, fold)
    lists = first_existing(folder, ["splits_new", "splits"], "folds")
    splits: Splits = {}
    for split, name in (("train", "train"), ("test", "val")):
        path = lists / f"{name}_split_{fold}.json"
        posts = read_json(path)
        if not isinstance(posts, list):
            raise DatasetError(f"{path}: expected a list of posts; fetch it again")
        splits[split] = []
        for number, post in enumerate(posts, 1):
            where = f"{path}, post {number}"
            require_keys(post, {"filename": str, _KEYS[labels]: str}, where)
            photo = inside(folder / "images", post["filename"], where)
            text, label = post.get(caption), post[_KEYS[labels]]
            splits[split].append(
                Sample(
                    id=post["filename"],
                    targets=reader.targets([_RELEASED.get(label, label)], where),
                    image=photo if photo.is_file() else None,
                    text=text if isinstance(text, str) else None,
                    where=where,
                )
            )
    return Dataset(f"mdid-{labels}", reader.taxonomy, "singlelabel", splits)


def _tables(folder: Path, labels: str, fold: int) -> Dataset:
    """Read fold 0 from tables of captions with all three labels."""
    if fold:
        raise DatasetError(f"{folder} has only fold 0; omit fold={fold}, or add `splits_new/`")
    name = f"mdid-{labels}"
    layout = TableLayout(columns={"label": labels})
    return replace(load_table(folder, taxonomy=name, task="singlelabel", layout=layout), name=name)


def mdid_features(root: str | os.PathLike[str] | None, samples: Sequence[Sample]) -> npt.NDArray[np.float32]:
    """Read the published ResNet-18 features (N, 512) of posts of `load_mdid`, in order.

    Raises:
        DatasetError: Features are missing or of different lengths.
    """
    folder = dataset_root("mdid", root, "mdid")
    rows = []
    for sample in samples:
        path = first_existing(
            folder / FEATURES, [f"{sample.id}.npy", f"{Path(sample.id).stem}.npy"], f"features of {sample.id}"
        )
        rows.append(load_array(path).astype(np.float32).reshape(-1))
        if rows[-1].shape != rows[0].shape:
            raise DatasetError(f"{path} has {rows[-1].size} values, the first post {rows[0].size}; fetch it again")
    if not rows:
        raise DatasetError("mdid: no posts to read features of")
    return np.stack(rows)
