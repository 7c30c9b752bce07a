"""Intents that a visitor writes, scored zero-shot: the photo is encoded once, each new list of words only itself."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from intclip.data.images import read_image
from intclip.data.loading import read_for_model
from intclip.errors import TaxonomyError
from intclip.inference.loading import ZERO_SHOT_THRESHOLD
from intclip.inference.prediction import Prediction
from intclip.labels.reading import parse_taxonomy
from intclip.labels.taxonomy import Taxonomy
from intclip.serving.app.kept import Kept

if TYPE_CHECKING:
    from torch import Tensor

    from intclip.backbones.base import Backbone, FeatureName, Features
    from intclip.evidence.evidence import Evidence
    from intclip.methods.base import Method

NAME = "own intents"
MOST = 60
"""Intents taken."""
_PHOTOS_KEPT = 512
_VIEWS_KEPT = 16
"""Photos whose parts are kept too, for finer evidence."""
_LISTS_KEPT = 8
_NEEDS: "tuple[FeatureName, ...]" = ("pooled", "regions")


def read_intents(text: str) -> Taxonomy | None:
    """A taxonomy from one intent a line; None where nothing is written. Repeated lines count once.

    Raises:
        TaxonomyError: A line cannot be a label, or there are more than `MOST`.
    """
    lines: dict[str, str] = {}
    for line in text.splitlines():
        if name := " ".join(line.split()):
            lines.setdefault(name.casefold(), name)
    if len(lines) > MOST:
        raise TaxonomyError(f"{len(lines)} intents are too many; write at most {MOST}")
    return parse_taxonomy(list(lines.values()), NAME, name=NAME) if lines else None


class OwnIntents:
    """Scores photos against any labels; may be shared by threads.

    Args:
        backbone: Its name.
    """

    def __init__(self, backbone: str = "lite") -> None:
        self.backbone_name = backbone
        self._backbone: Backbone | None = None
        self._photos: Kept[Features] = Kept(_PHOTOS_KEPT)
        self._views: Kept[Features] = Kept(_VIEWS_KEPT)
        self._methods: Kept[Method] = Kept(_LISTS_KEPT)
        self._lock = threading.Lock()
        self._begun = threading.Event()

    def begin(self) -> None:
        """Start `warm_up` beside what is going on, the first time."""
        if not self._begun.is_set():
            self._begun.set()
            # No daemon: a process that ends amid the import of torch would abort.
            threading.Thread(target=self.warm_up, name="intclip-own-intents").start()

    def warm_up(self) -> None:
        """Load the backbone and run its text tower once, so that nobody waits for it."""
        with self._lock:
            self._method(parse_taxonomy(["warm"], NAME, name=NAME))

    def predict(self, path: Path, labels: Taxonomy) -> Prediction:
        """Probabilities of the labels in a photo.

        Raises:
            ImageError: It cannot be read.
        """
        with self._lock:
            method = self._method(labels)
            logits = method(self._features(method.backbone, path)).logits[0]
        thresholds = np.full(len(labels), ZERO_SHOT_THRESHOLD, dtype=np.float32)
        return Prediction(logits.sigmoid().numpy().astype(np.float32), thresholds, labels, str(path))

    def explain(self, path: Path, labels: Taxonomy, label: str, *, fine: bool = False) -> "Evidence":
        """Where in a photo a label's evidence lies.

        Args:
            path: The photo.
            labels: What is asked about.
            label: One of them.
            fine: Evidence of kind "fine" in place of "regions".

        Raises:
            ImageError: It cannot be read.
            TaxonomyError: There is no such label.
        """
        from intclip.evidence.evidence import make_evidence
        from intclip.evidence.views import join_views

        index = labels.index(label)
        with self._lock:
            method = self._method(labels)
            output = method((self._of_views if fine else self._features)(method.backbone, path), maps=True)
        maps = {name: values[:, index].numpy() for name, values in output.maps.items()}
        regions = {name: join_views(values) if fine else values[0] for name, values in maps.items()}
        preprocess = method.backbone.preprocess
        return make_evidence(
            labels.names[index],
            float(output.logits[0, index].sigmoid()),
            regions,
            size=preprocess.size,
            box=preprocess.source_box(read_image(path).size),
            source=str(path),
            kind="fine" if fine else "regions",
        )

    def _method(self, labels: Taxonomy) -> "Method":
        from intclip.backbones import load_backbone
        from intclip.methods.registry import build_method

        backbone = self._backbone = self._backbone or load_backbone(self.backbone_name)
        return self._methods.once(labels.names, lambda: build_method("zero_shot", backbone, labels, {}))

    def _features(self, backbone: "Backbone", path: Path) -> "Features":
        return self._photos.once(path, lambda: backbone.features(_pixels(backbone, path), _NEEDS))

    def _of_views(self, backbone: "Backbone", path: Path) -> "Features":
        import torch

        from intclip.evidence.views import photo_views

        def compute() -> "Features":
            views = photo_views(_pixels(backbone, path)[0].numpy())
            return backbone.features(torch.from_numpy(views), _NEEDS)

        return self._views.once(path, compute)


def _pixels(backbone: "Backbone", path: Path) -> "Tensor":
    return backbone.pixels([read_for_model(path, backbone.image_size)])
