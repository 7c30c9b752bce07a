"""MVSA-Single: tweets with a photo and the sentiment of both (Niu et al., MMM 2016)."""

import os
from collections.abc import Mapping
from dataclasses import replace

from intclip.data.reading import Missing, dataset_root
from intclip.data.sample import Dataset
from intclip.data.tabular import TableLayout, load_table


def load_mvsa(
    root: str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "error",
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8-sig",
) -> Dataset:
    """Load MVSA from tables: photo, text and one of positive, neutral, negative.

    Args:
        root: Folder with `train.csv`, `val.csv` and optionally `test.csv` (columns image, label, text),
            with photos at the paths given there.
        missing: How to treat missing photos.
        columns: Other column names, see `TableLayout`.
        encoding: Encoding of the tables.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("mvsa", root, "mvsa")
    layout = TableLayout(columns=columns, encoding=encoding)
    dataset = load_table(folder, taxonomy="sentiment3", task="singlelabel", missing=missing, layout=layout)
    return replace(dataset, name="mvsa")
