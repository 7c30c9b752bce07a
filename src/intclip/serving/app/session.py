"""What one visitor has put in, chosen and corrected; plain data, no computing."""

import csv
import io
import json
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from intclip.files import write_text
from intclip.inference.results import LABEL_SEPARATOR

PHOTO_ALONE = "photo"
"""The choice among the maps of evidence that shows none."""


@dataclass(frozen=True)
class Photo:
    """A photo of the session.

    Attributes:
        path: The file.
        name: How the visitor's computer calls it: a file name, or a path inside the folder that was dropped.
        thumbnail: A small JPEG as a data URI.
    """

    path: Path
    name: str
    thumbnail: str = field(repr=False)


class OneByOne:
    """A lock, of which every copy is one of its own: each visitor's session is a copy of the first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


@dataclass
class Session:
    """One visitor's page.

    Attributes:
        photos: In the order they came.
        model: Name of the chosen model.
        place: Position of the photo that is looked at.
        label: Whose evidence is shown; None stands for the photo's most probable label.
        branch: Which map of evidence, or `PHOTO_ALONE`.
        fine: Whether the maps are of kind "fine", where the reader has such.
        level: Level of the taxonomy that the bars show.
        own: The visitor's own intents, one a line.
        thresholds: Label set to label to the threshold that was slid; others are the model's own.
        captions: Position of a photo to the words of its post.
        kept: Label set to position of a photo to the labels that the visitor says hold.
        notice: What happened last, in one line.
        turn: Counts notices, so that two equal ones are two.
        changing: Held while something is changed and drawn.
    """

    photos: list[Photo]
    model: str
    place: int = 0
    label: str | None = None
    branch: str = "fused"
    fine: bool = False
    level: int = 0
    own: str = ""
    thresholds: dict[str, dict[str, float]] = field(default_factory=dict)
    captions: dict[int, str] = field(default_factory=dict)
    kept: dict[str, dict[int, tuple[str, ...]]] = field(default_factory=dict)
    notice: str = ""
    turn: int = 0
    changing: OneByOne = field(default_factory=OneByOne, repr=False, compare=False)

    @property
    def photo(self) -> Photo | None:
        """The photo that is looked at; None where there are none yet."""
        return self.photos[self.place] if self.photos else None

    def remember(self) -> "Session":
        """The session as it is now, to come back to."""
        thresholds = {name: dict(moved) for name, moved in self.thresholds.items()}
        kept = {name: dict(rows) for name, rows in self.kept.items()}
        return replace(self, photos=list(self.photos), thresholds=thresholds, captions=dict(self.captions), kept=kept)

    def go_back(self, before: "Session") -> None:
        """Be again what `remember` told."""
        vars(self).update(vars(before))

    def tell(self, notice: str) -> None:
        """Say what happened."""
        self.notice, self.turn = notice, self.turn + 1


def corrections_table(photos: Sequence[Photo], kept: Mapping[int, Sequence[str]], captions: Mapping[int, str]) -> str:
    """Corrections as CSV with columns image, text (where there are captions) and labels, as `intclip fit` reads it.

    Args:
        photos: Of the session.
        kept: Position to labels; none of them is written as `[]`, an empty cell would mean that nothing is known.
        captions: Position to words.
    """
    words = any(captions.get(place, "").strip() for place in kept)
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["image", "text", "labels"] if words else ["image", "labels"])
    for place in sorted(kept):
        text = [captions.get(place, "").strip()] if words else []
        table.writerow([photos[place].name, *text, _cell(kept[place])])
    return stream.getvalue()


def write_corrections(session: Session, label_set: str, folder: Path) -> Path | None:
    """The corrections of a label set as a file to download, inside a folder; None where there are none yet."""
    kept = session.kept.get(label_set)
    if not kept:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = Path(tempfile.mkdtemp(dir=folder)) / "corrections.csv"
    write_text(path, corrections_table(session.photos, kept, session.captions))
    return path


def _cell(labels: Sequence[str]) -> str:
    """Names joined by ";", or a JSON list where that would be read otherwise."""
    plain = labels and not labels[0].startswith("[") and not any(";" in name for name in labels)
    return LABEL_SEPARATOR.join(labels) if plain else json.dumps(list(labels), ensure_ascii=False)
