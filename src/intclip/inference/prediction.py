"""Prediction for a photo or post."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
import numpy.typing as npt

from intclip.inference.conflict import Conflict
from intclip.labels.taxonomy import LiftRule, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """Probabilities of K labels for one photo or post.

    Attributes:
        probabilities: (K,) float32 in [0, 1]; NaN if the photo could not be read.
        thresholds: (K,) float32; labels at or above their threshold are predicted.
        taxonomy: The K labels.
        source: The photo's path or type.
        error: Why the photo could not be read; None on success.
        conflict: Conflict between photo and text, for posts with both; otherwise None.
    """

    probabilities: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.float32]
    taxonomy: Taxonomy
    source: str
    error: str | None = None
    conflict: Conflict | None = None

    def __repr__(self) -> str:
        from intclip.inference.display import answer

        return f"<Prediction {self.source}: {answer(self)}>"

    @property
    def labels(self) -> list[str]:
        """Names at or above their thresholds, in the taxonomy's order; for exclusive labels the most probable."""
        if self.error is not None:
            return []
        if self.taxonomy.exclusive:
            return [self.taxonomy.names[int(self.probabilities.argmax())]]
        return [name for name, holds in zip(self.taxonomy.names, self._holds(), strict=True) if holds]

    @property
    def clear(self) -> bool:
        """Whether any label is predicted; otherwise the answer is "no clear intent"."""
        return bool(self.labels)

    @property
    def scores(self) -> dict[str, float]:
        """Name to probability, in the taxonomy's order."""
        return dict(zip(self.taxonomy.names, self.probabilities.tolist(), strict=True))

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """Return the most probable names with their probabilities, highest first.

        Raises:
            ValueError: The count is negative.
        """
        if count < 0:
            raise ValueError(f"count={count}: choose at least 0")
        if self.error is not None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.taxonomy.names[i], float(self.probabilities[i])) for i in order]

    def level(self, name: str | int, rule: LiftRule | None = None) -> dict[str, float]:
        """Return the probabilities at a coarser level of the hierarchy, by name.

        Args:
            name: A level of the taxonomy, by name or position.
            rule: See `Taxonomy.lift`; default: "max", or "sum" for exclusive labels.

        Raises:
            TaxonomyError: The level is unknown.
        """
        index = self.taxonomy.level_index(name)
        names = list(self.taxonomy.levels.values())[index]
        rule = rule or ("sum" if self.taxonomy.exclusive else "max")
        lifted = self.taxonomy.lift(self.probabilities[None], index, rule)[0]
        return dict(zip(names, lifted.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values: source, error, labels, clear, scores; with photo and text conflict and disputed."""
        if self.error is not None:
            return {"source": self.source, "error": self.error, "labels": [], "clear": False, "scores": None}
        row: dict[str, Any] = {"source": self.source, "error": None}
        row |= {"labels": self.labels, "clear": self.clear, "scores": self.scores}
        if self.conflict is not None:
            row["conflict"] = self.conflict.score
            row["disputed"] = {name: list(pair) for name, pair in self.conflict.disputed.items()}
        return row

    def plot(self, *, count: int = 10, ax: "Axes | None" = None) -> "Axes":
        """Draw the most probable labels as bars, with their thresholds.

        Args:
            count: Number of labels.
            ax: Matplotlib axes; default: new ones.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        from intclip.inference.display import plot_prediction

        return plot_prediction(self, count=count, ax=ax)

    def _repr_html_(self) -> str:
        from intclip.inference.display import prediction_html

        return prediction_html(self)

    def _holds(self) -> npt.NDArray[np.bool_]:
        return self.probabilities >= self.thresholds


class Predictions(list[Prediction]):
    """Predictions of one model, in order."""

    @overload
    def __getitem__(self, key: SupportsIndex) -> Prediction: ...
    @overload
    def __getitem__(self, key: slice) -> "Predictions": ...
    def __getitem__(self, key: SupportsIndex | slice) -> "Prediction | Predictions":
        """Return one prediction, or those of a slice."""
        if isinstance(key, slice):
            return Predictions(super().__getitem__(key))
        return super().__getitem__(key)

    def to_pandas(self) -> "DataFrame":
        """Return one row per prediction: source, error, labels (a list), then the probability of each label.

        A label named like another column is marked, as in the CSV of `intclip predict`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from intclip.inference.display import predictions_frame

        return predictions_frame(self)

    def _repr_html_(self) -> str:
        from intclip.inference.display import predictions_html

        return predictions_html(self)
