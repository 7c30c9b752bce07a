"""Train a model on a visitor's corrections and serve it with the others."""

import itertools
import json
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from intclip.data.tabular import load_table
from intclip.errors import IntclipError
from intclip.inference.loading import load
from intclip.labels.taxonomy import Taxonomy
from intclip.serving.batcher import Batcher

MOST_ROWS = 1000
"""Maximum number of training photos in the app; `intclip fit` has no limit."""
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,40}"
_log = logging.getLogger(__name__)


class CorrectedPhoto(BaseModel):
    """A corrected photo.

    Attributes:
        name: The visitor's name for the photo.
        labels: The labels that apply, possibly none.
        text: The post's text.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    labels: list[str]
    text: str | None = None


class Training(BaseModel):
    """Progress of a training.

    Attributes:
        state: "idle" before the first one.
        stage: Current stage.
        done: Completed units of the stage.
        total: All units of the stage.
        model: Name of the trained model in the service.
        folder: Folder of its bundle.
        photos: Number of training photos.
        error: Why it failed.
    """

    state: Literal["idle", "running", "done", "failed"] = "idle"
    stage: str = ""
    done: int = 0
    total: int = 0
    model: str | None = None
    folder: str | None = None
    photos: int = 0
    error: str | None = None


class _Stopped(Exception):
    """Raised when the program ends."""


class BackgroundTrainer:
    """Trains one model at a time in its own thread.

    Args:
        batcher: Receives the trained models.
        folder: Parent folder of the bundles.

    Attributes:
        status: Status of the current or last training.
    """

    def __init__(self, batcher: Batcher, folder: Path) -> None:
        self.status = Training()
        self._batcher, self._folder = batcher, folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="intclip-training")
        self._closing = False
        self._lock = threading.Lock()

    def start(
        self,
        rows: Sequence[CorrectedPhoto],
        photos: "tempfile.TemporaryDirectory[str]",
        taxonomy: Taxonomy | None,
        name: str,
    ) -> Training:
        """Start training; see `status` for progress.

        Args:
            rows: Labels and text of each photo.
            photos: Folder with the photos, named by `photo_file`; removed at the end.
            taxonomy: The labels; None uses those in the rows.
            name: Name of the model; a number is appended if it is taken.

        Raises:
            IntclipError: A training is running, or the name is not a valid folder name.
        """
        if not re.fullmatch(_NAME, name):
            raise IntclipError(f"name: {name[:40]!r} cannot name a folder; use letters, digits, '-', '_' and '.'")
        with self._lock:
            if self.status.state == "running":
                raise IntclipError("a model is being trained; wait until it is done")
            name = self._free(name)
            self.status = Training(state="running", stage="reading the photos", photos=len(rows))
            self._pool.submit(self._train, list(rows), photos, taxonomy, name)
        return self.status

    def close(self) -> None:
        """Stop at the next training step, and wait for it."""
        self._closing = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _free(self, name: str) -> str:
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(one for one in names if one not in self._batcher.models and not (self._folder / one).exists())

    def _train(
        self,
        rows: list[CorrectedPhoto],
        photos: "tempfile.TemporaryDirectory[str]",
        taxonomy: Taxonomy | None,
        name: str,
    ) -> None:
        folder = self._folder / name
        try:
            with photos as home:
                _fit(rows, Path(home), taxonomy, folder, self._tell)
            self._batcher.models[name] = load(folder)
            self.status = self.status.model_copy(
                update={"state": "done", "stage": "", "model": name, "folder": str(folder)}
            )
        except _Stopped:
            self._fail("the app was closed before training finished")
        except IntclipError as error:
            self._fail(str(error))
        except Exception:  # report it to the page, and allow the next training
            _log.exception("training failed")
            self._fail("training failed unexpectedly; see the app's log")

    def _fail(self, error: str) -> None:
        self.status = Training(state="failed", error=error, photos=self.status.photos)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self._closing:
            raise _Stopped
        self.status = self.status.model_copy(update={"stage": stage, "done": done, "total": total})


def photo_file(number: int) -> str:
    """Return the file name of a row's photo, counted from 0."""
    return f"{number:06}.photo"


def _fit(
    rows: Sequence[CorrectedPhoto],
    home: Path,
    taxonomy: Taxonomy | None,
    out: Path,
    tell: Callable[[str, int, int], None],
) -> None:
    """Run `intclip fit` on a table of these rows."""
    from intclip.training.fitting import fit_dataset, write_fitted

    table = home / "corrections.jsonl"
    lines = [
        {"image": photo_file(number), "labels": row.labels} | ({"text": row.text} if row.text else {})
        for number, row in enumerate(rows)
    ]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    fitted = fit_dataset(load_table(table, taxonomy=taxonomy, task="multilabel"), progress=tell)
    write_fitted(fitted, out)
