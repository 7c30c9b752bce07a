"""Evidence for a label in a photo: maps of region logits, and their overlay on the photo."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from intclip.evidence.heat import Heat, unit_range, upsample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from intclip.data.images import ImageInput


@dataclass(frozen=True)
class Neighbour:
    """A known photo similar to the explained one.

    Attributes:
        path: Its path.
        cosine: Cosine of the two photos' embeddings by the backbone.
        labels: Labels that the model predicts for it.
    """

    path: str
    cosine: float
    labels: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Evidence for a label in a photo: region logits, each map scaled to [0, 1] by its own range.

    The maps cover the square `box` of the photo that the model saw, at the size of the model's input.
    If a method lacks a branch, its map equals the fused one: zero-shot models and single branches have three equal
    maps; `branches` lists the method's own maps.

    Attributes:
        label: The label's name.
        probability: Probability of the label in this photo.
        sight: What is seen: the frozen branch (H, W).
        semantic: What is meant: the trained branch (H, W).
        fused: Their aggregate (H, W), which determines the prediction.
        branches: Names of the method's own maps.
        regions: Unscaled region logits by branch, (h, w): positive for, negative against the label. Kind "fine" has
            (4h, 4w).
        box: The part (left, top, right, bottom) of the photo that the model saw, in pixels of the upright photo.
        source: The photo's path or type.
        kind: Kind of the maps, see `intclip.evidence.kinds`; default: region logits.
        attention: Attention of each semantic region (N) to the sight regions (N), (queries, keys), rows summing to 1,
            regions row by row; None if the method or kind has none. In the aggregation variants "paper" and "released"
            the keys are also semantic, with sight values.
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
            photo: The photo; default: read again from `source`; without it only the map is drawn.
            branch: "fused", "sight" or "semantic".
            ax: Matplotlib axes; default: new ones.

        Raises:
            IntclipError: The branch is unknown.
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
    """Make evidence from a photo's region logits.

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
