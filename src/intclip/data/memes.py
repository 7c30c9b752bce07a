"""Memes with persuasion techniques: SemEval-2021 task 6, subtask 3 (Dimitrov et al., 2021)."""

import os
from collections.abc import Mapping
from dataclasses import replace

from intclip.data.reading import Missing, dataset_root
from intclip.data.sample import Dataset
from intclip.data.tabular import TableLayout, load_table


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
        columns: Other column names, see `TableLayout`.
        encoding: Encoding of the tables.

    Raises:
        DatasetError: A file is missing or malformed, or photos are missing.
    """
    folder = dataset_root("memes", root, "memes")
    layout = TableLayout(columns=columns, encoding=encoding)
    dataset = load_table(folder, taxonomy="persuasion", task="multilabel", missing=missing, layout=layout)
    return replace(dataset, name="memes")
