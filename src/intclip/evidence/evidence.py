"""Where in a photo a label's evidence lies: maps from the model's own region logits, and their overlay on the photo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intclip.evidence.heat import Heat, unit_range, upsample

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from intclip.data.images import ImageInput


@dataclass(frozen=True)
class Neighbour:
    """A known photo that is like the explained one.

    Attributes:
        path: Where it lies.
        cosine: Cosine of the two photos' embeddings by the backbone.
        labels: What the model predicts for it, at its own thresholds.
    """

    path: str
    cosine: float
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence of one label in one photo: the model's region logits, scaled to [0, 1] each by its own range.

    The maps cover what the model saw, the square `box` of the photo, at the size of the model's input. A branch that a
    method does not have shows the fused map: a zero-shot model and a single branch have one map, all three are equal
    then; `branches` names the maps that are the method's own.

    Attributes:
        label: The label's name.
        probability: Probability of the label in this photo.
        sight: What is seen: the frozen branch (H, W).
        semantic: What is meant: the trained branch (H, W).
        fused: Their aggregate (H, W), which decides.
        branches: Names of the maps that are the method's own.
        regions: The region logits behind the maps, by branch, (h, w), not scaled: above 0 speaks for the label, below 0
            against it. Kind "fine" has (4h, 4w).
        box: The part (left, top, right, bottom) of the photo that the model saw, in pixels of the upright photo.
        source: The photo's path, or what kind of object it was.
        kind: Where the maps come from, see `intclip.evidence.kinds`; by default the region logits.
        attention: How much of each sight region (N) each semantic region (N) has taken over, (queries, keys), rows
            summing to 1, regions row by row; None where the method or the kind has none. In the variants "paper" and
            "released" of the aggregation the keys are semantic too, and the values at their places are of sight.
        neighbours: The nearest known photos, nearest first; see `intclip.search.neighbours`.
    """

    label: str
    probability: float
    sight: Heat = field(repr=False)
    semantic: Heat = field(repr=False)
    fused: Heat = field(repr=False)
    branches: tuple[str, ...]
    regions: Mapping[str, Heat] = field(repr=False)
    box: tuple[float, float, float, float]
    source: str
    kind: str = "regions"
    attention: Heat | None = field(default=None, repr=False)
    neighbours: tuple[Neighbour, ...] = ()

    def plot(self, photo: "ImageInput | None" = None, *, branch: str = "fused", ax: "Axes | None" = None) -> "Axes":
        """Draw the photo under a map.

        Args:
            photo: The photo; by default it is read again from `source`, and without it the map is drawn alone.
            branch: "fused", "sight" or "semantic".
            ax: Axes of matplotlib to draw into; new ones by default.

        Raises:
            IntclipError: There is no such map.
            MissingExtraError: matplotlib is not installed.
        """
        from intclip.evidence.display import plot_evidence

        return plot_evidence(self, photo, branch=branch, ax=ax)

    def _repr_html_(self) -> str:
        from intclip.evidence.display import evidence_html

        return evidence_html(self)


def make_evidence(
    label: str,
    probability: float,
    regions: Mapping[str, npt.NDArray[np.floating[Any]]],
    *,
    size: int,
    box: tuple[float, float, float, float],
    source: str,
    kind: str = "regions",
    attention: npt.NDArray[np.floating[Any]] | None = None,
) -> Evidence:
    """Evidence from one photo's region logits.

    Args:
        label: The label's name.
        probability: Probability of the label.
        regions: Branch ("sight", "semantic", "fused"; at least one) to region logits (h, w) of this label.
        size: Side of the maps, the model's input size.
        box: See `Evidence`.
        source: See `Evidence`.
        kind: See `Evidence`.
        attention: See `Evidence`.
    """
    heats = {name: unit_range(upsample(logits, size)) for name, logits in regions.items()}
    fused = heats.get("fused", heats.get("sight", next(iter(heats.values()))))
    return Evidence(
        label=label,
        probability=probability,
        sight=heats.get("sight", fused),
        semantic=heats.get("semantic", fused),
        fused=fused,
        branches=tuple(heats),
        regions={name: np.asarray(logits, dtype=np.float32) for name, logits in regions.items()},
        box=box,
        source=source,
        kind=kind,
        attention=None if attention is None else np.asarray(attention, dtype=np.float32),
    )
