"""MVSA-Single: tweets with a photo and the sentiment of both (Niu et al., MMM 2016)."""

import os
from collections.abc import Mapping

from intclip.data.reading import Missing, dataset_root
from intclip.data.sample import Dataset
from intclip.data.tabular import load_table


def load_mvsa(
    root: str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "error",
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8-sig",
) -> Dataset:
    """MVSA as tables: photo, text and one of positive, neutral, negative.

    Args:
        root: Folder with `train.csv`, `val.csv` and, if there is one, `test.csv` (columns image, label, text) and the
            photos at the paths they name.
        missing: What to do about photos that are not there.
        columns: See `load_table`, where the columns are called otherwise.
        encoding: Encoding of the tables.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("mvsa", root, "mvsa")
    return load_table(
        folder,
        taxonomy="sentiment3",
        name="mvsa",
        task="singlelabel",
        missing=missing,
        columns=columns,
        encoding=encoding,
    )
