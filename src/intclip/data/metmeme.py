"""MET-Meme: English memes with their intention, as text and a model's description of the picture.

Source: liaolianfoka/MET-Meme (Xu et al., SIGIR 2022); the tables and descriptions are those of mingyao1120/PsyIntent.
"""

import os
from dataclasses import replace
from typing import Literal

from intclip.data.reading import dataset_root
from intclip.data.sample import Dataset
from intclip.data.tables import read_rows
from intclip.data.tabular import dataset_from_rows, table_files
from intclip.errors import DatasetError

Words = Literal["both", "text", "description"]


def load_metmeme(root: str | os.PathLike[str] | None = None, *, words: Words = "both") -> Dataset:
    """Memes without photos: "train" (2,395) and "val" (798), one of five intentions each.

    Args:
        root: Folder with `train.csv`, `val.csv` and optionally `test.csv` (text, description, intent).
        words: A sample's text: the text in the meme ("text"), a vision-language model's description of the picture
            ("description"), or both. Memes without any are skipped.

    Raises:
        DatasetError: A file is missing or malformed.
    """
    if words not in ("both", "text", "description"):
        raise DatasetError(f"metmeme: words={words!r}: choose both, text or description")
    folder = dataset_root("metmeme", root, "metmeme")
    files = table_files(folder)
    kinds = ("text", "description") if words == "both" else (words,)
    tables = {}
    for split, path in files.items():
        rows = []
        for row in read_rows(path, columns={"label": "intent", "text": "text"}):
            cells = {"text": row.known.get("text"), "description": row.other.get("description")}
            said = [str(cells[kind]).strip() for kind in kinds if cells[kind]]
            if said:
                rows.append(replace(row, known=row.known | {"text": "\n".join(said)}))
        tables[split] = rows
    return dataset_from_rows(
        tables,
        {split: path.parent for split, path in files.items()},
        name="metmeme",
        where=str(folder),
        taxonomy="metmeme-intent",
        task="singlelabel",
        separator=";",
    )
