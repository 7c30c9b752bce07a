"""What the model says of one photo."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.labels.taxonomy import LiftRule, Taxonomy


@dataclass(frozen=True, eq=False)
class Prediction:
    """Probabilities of K labels for one photo.

    Attributes:
        probabilities: (K,) float32 in [0, 1]; NaN where the photo could not be read.
        thresholds: (K,) float32; a label holds from its threshold on.
        taxonomy: The K labels.
        source: The photo's path, or what kind of object it was.
        error: Why the photo could not be read; None when it could.
    """

    probabilities: npt.NDArray[np.float32]
    thresholds: npt.NDArray[np.float32] = field(repr=False)
    taxonomy: Taxonomy = field(repr=False)
    source: str
    error: str | None = None

    @property
    def labels(self) -> list[str]:
        """Names at or above their thresholds, in the taxonomy's order; of an exclusive taxonomy the most probable."""
        if self.error is not None:
            return []
        if self.taxonomy.exclusive:
            return [self.taxonomy.names[int(self.probabilities.argmax())]]
        return [name for name, holds in zip(self.taxonomy.names, self._holds(), strict=True) if holds]

    @property
    def scores(self) -> dict[str, float]:
        """Name to probability, in the taxonomy's order."""
        return dict(zip(self.taxonomy.names, self.probabilities.tolist(), strict=True))

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The most probable names with their probabilities, highest first."""
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
        """JSON values: source, labels, scores, and error where there is one."""
        if self.error is not None:
            return {"source": self.source, "error": self.error, "labels": [], "scores": None}
        return {"source": self.source, "error": None, "labels": self.labels, "scores": self.scores}

    def _holds(self) -> npt.NDArray[np.bool_]:
        return self.probabilities >= self.thresholds
