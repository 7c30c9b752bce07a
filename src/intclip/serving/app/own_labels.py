"""Zero-shot scoring of a visitor's labels; each photo and each list of labels is encoded once."""

import hashlib
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from cachetools import LRUCache

from intclip.data.images import whole_size
from intclip.data.loading import read_for_model
from intclip.errors import TaxonomyError
from intclip.inference.loading import zero_shot_options, zero_shot_threshold
from intclip.inference.prediction import Prediction
from intclip.labels.reading import parse_taxonomy
from intclip.labels.taxonomy import Taxonomy
from intclip.serving.answers import MapKind

if TYPE_CHECKING:
    from torch import Tensor

    from intclip.backbones.base import Backbone, FeatureName, Features
    from intclip.evidence.evidence import Evidence
    from intclip.methods.base import Method

NAME = "own labels"
MOST_LABELS = 60
OWN_BACKBONE = "lite"
_PHOTOS_KEPT = 512
_VIEWS_KEPT = 16
"""Number of photos whose enlarged parts are cached too, for finer evidence."""
_LISTS_KEPT = 8
_NEEDS: "tuple[FeatureName, ...]" = ("pooled", "regions")


def make_taxonomy(lines: Sequence[str]) -> Taxonomy:
    """Parse a taxonomy, one label per line; blank and repeated lines are dropped.

    Raises:
        TaxonomyError: A line is not a valid label, there are more than `MOST_LABELS`, or none.
    """
    names: dict[str, str] = {}
    for line in lines:
        if name := " ".join(line.split()):
            names.setdefault(name.casefold(), name)
    if not names:
        raise TaxonomyError("no labels; write at least one")
    if len(names) > MOST_LABELS:
        raise TaxonomyError(f"{len(names)} labels are too many; write at most {MOST_LABELS}")
    return parse_taxonomy(list(names.values()), NAME, name=NAME)


class OwnLabels:
    """Scores photos against any labels; thread-safe.

    Args:
        backbone: The backbone's name.
        max_pixels: Larger photos are rejected.
    """

    def __init__(self, backbone: str = OWN_BACKBONE, *, max_pixels: int) -> None:
        self.backbone_name = backbone
        self._max_pixels = max_pixels
        self._backbone: Backbone | None = None
        self._photos: LRUCache[bytes, Features] = LRUCache(_PHOTOS_KEPT)
        self._views: LRUCache[bytes, Features] = LRUCache(_VIEWS_KEPT)
        self._methods: LRUCache[tuple[str, ...], Method] = LRUCache(_LISTS_KEPT)
        self._lock = threading.Lock()

    def predict(self, photo: bytes, labels: Taxonomy) -> Prediction:
        """Return the probabilities of the labels in an encoded photo.

        Raises:
            ImageError: The photo cannot be read.
        """
        with self._lock:
            method = self._method(labels)
            logits = method(self._features(method.backbone, photo, "regions")).logits[0]
        thresholds = np.full(len(labels), zero_shot_threshold(self.backbone_name), dtype=np.float32)
        return Prediction(logits.sigmoid().numpy().astype(np.float32), thresholds, labels, NAME)

    def explain(self, photo: bytes, labels: Taxonomy, label: str, *, kind: MapKind = "regions") -> "Evidence":
        """Return the evidence for a label in an encoded photo.

        Args:
            photo: The photo file.
            labels: The labels scored.
            label: One of them.
            kind: Kind of evidence.

        Raises:
            ImageError: The photo cannot be read.
            TaxonomyError: The label is unknown.
        """
        from intclip.evidence.evidence import make_evidence
        from intclip.evidence.views import join_views

        index = labels.index(label)
        with self._lock:
            method = self._method(labels)
            output = method(self._features(method.backbone, photo, kind), maps=True)
        maps = {name: values[:, index].numpy() for name, values in output.maps.items()}
        regions = {name: join_views(values) if kind == "fine" else values[0] for name, values in maps.items()}
        preprocess = method.backbone.preprocess
        read = read_for_model(photo, preprocess.size, max_pixels=self._max_pixels)
        return make_evidence(
            labels.names[index],
            float(output.logits[0, index].sigmoid()),
            regions,
            size=preprocess.size,
            box=preprocess.source_box(whole_size(read)),
            source=NAME,
            kind=kind,
        )

    def _method(self, labels: Taxonomy) -> "Method":
        from intclip.backbones import load_backbone
        from intclip.methods.registry import build_method

        if labels.names not in self._methods:
            backbone = self._backbone = self._backbone or load_backbone(self.backbone_name)
            self._methods[labels.names] = build_method(
                "zero_shot", backbone, labels, zero_shot_options(self.backbone_name)
            )
        return self._methods[labels.names]

    def _features(self, backbone: "Backbone", photo: bytes, kind: MapKind) -> "Features":
        kept, key = self._views if kind == "fine" else self._photos, hashlib.sha256(photo).digest()
        if key not in kept:
            pixels = self._pixels(backbone, photo)
            if kind == "fine":
                import torch

                from intclip.evidence.views import photo_views

                pixels = torch.from_numpy(photo_views(pixels[0].numpy()))
            kept[key] = backbone.features(pixels, _NEEDS)
        return kept[key]

    def _pixels(self, backbone: "Backbone", photo: bytes) -> "Tensor":
        return backbone.pixels([read_for_model(photo, backbone.image_size, max_pixels=self._max_pixels)])
