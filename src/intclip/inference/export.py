"""From a torch method to a graph that any machine runs: the step that `load` caches and `Predictor.export` writes."""

from collections.abc import Mapping, Sequence

import numpy as np

from intclip.inference.card import Channel, ModelCard
from intclip.inference.conversion import to_onnx, to_openvino
from intclip.inference.exported import Graph, GraphFormat
from intclip.inference.graph import PhotoGraph, evidence_of, example_pixels
from intclip.methods.base import Method


def make_card(
    method: Method,
    *,
    model: str,
    method_name: str,
    thresholds: float | Sequence[float] | np.ndarray,
    channel_thresholds: Mapping[Channel, list[float]] | None = None,
) -> ModelCard:
    """The card of a method.

    Args:
        method: With backbone and taxonomy.
        model: What the user asked for.
        method_name: Its name in the registry.
        thresholds: One for all labels, or K.
        channel_thresholds: See `ModelCard`.
    """
    taxonomy, backbone = method.taxonomy, method.backbone
    maps, attention = evidence_of(method)
    levels = np.broadcast_to(np.asarray(thresholds, dtype=np.float32), (len(taxonomy.names),))
    return ModelCard(
        model=model,
        backbone=backbone.name,
        method=method_name,
        task="singlelabel" if taxonomy.exclusive else "multilabel",
        labels=list(taxonomy.names),
        thresholds=[float(level) for level in levels],
        preprocessing=backbone.preprocess,
        maps=maps,
        attention=attention,
        channels=list(method.channels),
        alone=list(method.alone),
        channel_thresholds=dict(channel_thresholds or {}),
        taxonomy=taxonomy.to_dict(),
    )


def build_graph(method: Method, card: ModelCard, format: GraphFormat, *, maps: bool) -> Graph:
    """Convert a method to a graph with outputs "probabilities", "logits" and, with `maps`, "map_…" and "attention".

    Raises:
        IntclipError: The converter does not know something that the method does.
        MissingExtraError: The converter is not installed.
    """
    module = PhotoGraph(method, exclusive=card.task == "singlelabel", maps=maps)
    pixels = example_pixels(method.backbone)
    if format == "openvino":
        return Graph(format, to_openvino(module, pixels), card)
    return Graph(format, to_onnx(module, pixels).SerializeToString(), card)
