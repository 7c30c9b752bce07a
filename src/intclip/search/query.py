"""Search an index by sentence, photo or intent, with filters on intents."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intclip.batch.job import model_identity
from intclip.batch.shards import to_matrix
from intclip.data.images import ImageInput
from intclip.data.loading import read_for_model
from intclip.errors import IntclipError, StorageError, TaxonomyError
from intclip.extras import require
from intclip.labels.taxonomy import Taxonomy
from intclip.search.index import PHOTOS, VECTORS, read_index
from intclip.search.vectors import load_vectors, nearest

if TYPE_CHECKING:
    from intclip.backbones.base import Backbone

_FILTER = re.compile(r"\s*(?P<name>.*?)\s*(?P<sign>>=|<=|>|<)\s*(?P<value>[0-9.]+)\s*")
_COMPARES = re.compile("[<>=]")  # left in a name: no number follows, or two filters in one
_SIGNS = {">": np.greater, ">=": np.greater_equal, "<": np.less, "<=": np.less_equal}


@dataclass(frozen=True, eq=False)
class Hit:
    """A search result.

    Attributes:
        path: Path as indexed.
        score: Cosine with the sentence or photo, or the intent's probability.
        probabilities: (K,) float32.
    """

    path: str
    score: float
    probabilities: npt.NDArray[np.float32]


class PhotoIndex:
    """An index opened for search; see `update_index`.

    Args:
        folder: Folder of the index.

    Attributes:
        info: Its metadata.
        taxonomy: Its K labels.

    Raises:
        StorageError: The index is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.info = read_index(folder)
        self.taxonomy = Taxonomy.from_dict(self.info.taxonomy)
        self._home = Path(folder, self.info.generation)

    def __len__(self) -> int:
        """Number of searchable photos."""
        return self.info.photos

    def by_text(self, text: str, *, where: Sequence[str] = (), top: int = 10) -> list[Hit]:
        """Find photos with embeddings nearest to a sentence's.

        Args:
            text: What the photos should show or mean.
            where: Filters, see `matching`; all must match.
            top: Number of results.

        Raises:
            IntclipError: The sentence is empty, too long or has only unknown words, or a filter is invalid.
        """
        import torch

        from intclip.backbones.unknown_words import check_known

        if not text.strip():
            raise IntclipError("the sentence is empty; write what the photos should show")
        check_known(self._backbone, [text], "describe the photos in English")
        with torch.inference_mode():
            embedding = self._backbone.encode_text(self._backbone.tokenize([text]))[0]
        return self._near(embedding.numpy(), where, top)

    def by_photo(self, photo: ImageInput, *, where: Sequence[str] = (), top: int = 10) -> list[Hit]:
        """Find photos with embeddings nearest to a photo's, indexed or not.

        Args:
            photo: As for `read_image`.
            where: See `matching`.
            top: Number of results.

        Raises:
            ImageError: The photo cannot be read.
            IntclipError: A filter is invalid.
        """
        import torch

        image = read_for_model(photo, self._backbone.image_size)
        with torch.inference_mode():
            embedding = self._backbone.encode_image(self._backbone.preprocess(image)[None])[0]
        return self._near(embedding.numpy(), where, top)

    def by_intent(self, label: str, *, where: Sequence[str] = (), top: int = 10) -> list[Hit]:
        """Find photos with the highest probability of a label.

        Args:
            label: Name or alias.
            where: See `matching`.
            top: Number of results.

        Raises:
            TaxonomyError: The label is unknown.
            IntclipError: A filter is invalid.
        """
        scores = self._probabilities[:, self.taxonomy.index(label)]
        rows = np.flatnonzero(self.matching(where))
        best = rows[np.argsort(-scores[rows], kind="stable")[:top]]
        return self._hits(best, scores[best])

    def matching(self, where: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return a mask (N,) of the photos that match every filter.

        Args:
            where: "Natural beauty>0.5" (also >=, <, <=), or only a name: at or above the model's threshold, or
                the most probable label if exactly one applies.

        Raises:
            IntclipError: A filter is malformed.
            TaxonomyError: A label is unknown.
        """
        mask = np.ones(len(self), dtype=bool)
        for text in where:
            found = _FILTER.fullmatch(text)
            wrong = IntclipError(f"--where {text!r}: write NAME>0.5, NAME<0.5 or NAME")
            name, sign = (found["name"], found["sign"]) if found else (text, ">=")
            if not name.strip():
                raise wrong
            try:
                column = self.taxonomy.index(name)
            except TaxonomyError:
                if _COMPARES.search(name):
                    raise wrong from None
                raise
            if not found and self.taxonomy.exclusive:
                mask &= self._probabilities.argmax(axis=1) == column
                continue
            try:
                value = float(found["value"]) if found else self.info.thresholds[column]
            except ValueError:
                raise wrong from None
            mask &= _SIGNS[sign](self._probabilities[:, column], value)
        return mask

    def _near(self, embedding: npt.NDArray[np.float32], where: Sequence[str], top: int) -> list[Hit]:
        query = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
        allowed = self.matching(where) if where else None
        rows, cosines = nearest(self._vectors, query.astype(np.float32), top, allowed)
        return self._hits(rows, cosines)

    def _hits(self, rows: npt.NDArray[np.int64], scores: npt.NDArray[np.float32]) -> list[Hit]:
        paths = self._paths.take(rows).to_pylist() if len(rows) else []
        return [
            Hit(path, float(score), self._probabilities[row])
            for path, score, row in zip(paths, scores, rows, strict=True)
        ]

    def _column(self, name: str) -> Any:
        parquet = require("pyarrow.parquet", "core")
        try:
            return parquet.read_table(self._home / PHOTOS, columns=[name], memory_map=True)[name].combine_chunks()
        except Exception as error:  # Arrow raises its own and Python's errors
            raise StorageError(f"{self._home / PHOTOS} is damaged or missing; index again in another folder") from error

    @cached_property
    def _paths(self) -> Any:
        return self._column("path")

    @cached_property
    def _probabilities(self) -> npt.NDArray[np.float32]:
        return to_matrix(self._column("probabilities"))

    @cached_property
    def _vectors(self) -> Any:
        return load_vectors(self._home / VECTORS)

    @cached_property
    def _backbone(self) -> "Backbone":
        """Load the model's backbone in torch on the CPU; a single query needs no engine."""
        predictor = self.info.model.model_copy(update={"engine": "torch", "device": "cpu"}).load()
        if model_identity(predictor, self.info.model) != self.info.identity:
            raise StorageError(f"the model {self.info.model.spec} is not the one the index was made with; index again")
        return predictor.method().backbone
