"""What the model says of one photo, or of one post."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intclip.inference.conflict import Conflict
from intclip.labels.taxonomy import LiftRule, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities of K labels for one photo or post.

    Attributes:
        probabilities: (K,) float32 in [0, 1]; NaN where the photo could not be read.
        thresholds: (K,) float32; a label holds from its threshold on.
        taxonomy: The K labels.
        source: The photo's path, or what kind of object it was.
        error: Why the photo could not be read; None when it could.
        conflict: Between photo and words, of a post that has both; None elsewhere.
    """

    probabilities: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.float32] = field(repr=False)
    taxonomy: Taxonomy = field(repr=False)
    source: str
    error: str | None = None
    conflict: Conflict | None = None

    @property
    def labels(self) -> list[str]:
        """Names at or above their thresholds, in the taxonomy's order; of an exclusive taxonomy the most probable."""
        if self.error is not None:
            return []
        if self.taxonomy.exclusive:
            return [self.taxonomy.names[int(self.probabilities.argmax())]]
        return [name for name, holds in zip(self.taxonomy.names, self._holds(), strict=True) if holds]

    @property
    def clear(self) -> bool:
        """Whether any label holds. Where none does, the answer is "no clear intent", not the most probable label."""
        return bool(self.labels)

    @property
    def scores(self) -> dict[str, float]:
        """Name to probability, in the taxonomy's order."""
        return dict(zip(self.taxonomy.names, self.probabilities.tolist(), strict=True))

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable names with their probabilities, highest first.

        Raises:
            ValueError: The count is below 0.
        """
        if count < 0:
            raise ValueError(f"there are no {count} best labels; give 0 or more")
        if self.error is not None:
            return []
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.taxonomy.names[i], float(self.probabilities[i])) for i in order]

    def level(self, name: str | int, rule: LiftRule | None = None) -> dict[str, float]:
        """The same photo read at a coarser level of the hierarchy: name to probability.

        Args:
            name: A level of the taxonomy, by name or position.
            rule: See `Taxonomy.lift`; "max", and "sum" where labels exclude each other.

        Raises:
            TaxonomyError: There is no such level.
        """
        index = self.taxonomy.level_index(name)
        names = list(self.taxonomy.levels.values())[index]
        rule = rule or ("sum" if self.taxonomy.exclusive else "max")
        lifted = self.taxonomy.lift(self.probabilities[None], index, rule)[0]
        return dict(zip(names, lifted.tolist(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: source, error, labels, clear, scores; conflict and disputed of a post with photo and words."""
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
            count: How many labels.
            ax: Axes of matplotlib to draw into; new ones by default.

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
    """Predictions in order, of one model."""

    def to_pandas(self) -> "DataFrame":
        """A row for each prediction: source, error, labels (a list), then the probability of each label.

        A label that is called like another column has a mark behind its name, as in the CSV of `intclip predict`.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from intclip.inference.display import predictions_frame

        return predictions_frame(self)

    def _repr_html_(self) -> str:
        from intclip.inference.display import predictions_html

        return predictions_html(self)
