"""Memes with persuasion techniques: SemEval-2021 task 6, subtask 3 (Dimitrov et al., 2021)."""

import os
from collections.abc import Mapping

from intclip.data.reading import Missing, dataset_root
from intclip.data.sample import Dataset
from intclip.data.tabular import load_table


def load_memes(
    root: str | os.PathLike[str] | None = None,
    *,
    missing: Missing = "error",
    columns: Mapping[str, str] | None = None,
    encoding: str = "utf-8-sig",
) -> Dataset:
    """Load memes from JSON lines: photo, its text, and which of 22 persuasion techniques it uses (often several).

    Args:
        root: Folder with `train.jsonl`, `val.jsonl` and optionally `test.jsonl` (image, labels, text),
            with photos at the paths given there.
        missing: How to treat missing photos.
        columns: Other column names, see `load_table`.
        encoding: Encoding of the tables.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("memes", root, "memes")
    return load_table(
        folder,
        taxonomy="persuasion",
        name="memes",
        task="multilabel",
        missing=missing,
        columns=columns,
        encoding=encoding,
    )
