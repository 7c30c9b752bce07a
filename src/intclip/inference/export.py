"""Convert a torch method to a graph, which `load` caches and `Predictor.export` writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from intclip.backbones.base import FeatureName
from intclip.inference.card import Channel, ModelCard
from intclip.inference.conversion import Inputs, to_onnx, to_openvino
from intclip.inference.exported import Graph, GraphFormat, Tower
from intclip.inference.graph import FeatureGraph, HeadGraph, PhotoGraph, evidence_of, example_pixels
from intclip.methods.base import Method
from intclip.methods.registry import name_of


def make_card(
    method: Method,
    *,
    model: str,
    thresholds: float | Sequence[float] | np.ndarray,
    channel_thresholds: Mapping[Channel, list[float]] | None = None,
) -> ModelCard:
    """Make the card of a method.

    Args:
        method: The method.
        model: Name given by the user.
        thresholds: One for all labels, or K.
        channel_thresholds: See `ModelCard`.
    """
    taxonomy, backbone = method.taxonomy, method.backbone
    maps, attention = evidence_of(method)
    levels = np.broadcast_to(np.asarray(thresholds, dtype=np.float32), (len(taxonomy.names),))
    return ModelCard(
        model=model,
        backbone=backbone.name,
        method=name_of(method),
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


def build_graph(
    method: Method, card: ModelCard, format: GraphFormat, *, maps: bool, tower: Tower | None = None
) -> Graph:
    """Convert a method to one graph from pixels to its outputs; see `convert_head` and `convert_tower`.

    Args:
        method: The method.
        card: Its card.
        format: Target library.
        maps: Include the evidence maps and the "attention" in the outputs.
        tower: The converted tower of its backbone, if available.

    Raises:
        IntclipError: The converter does not support an operation of the method.
        MissingExtraError: The converter is not installed.
    """
    head = convert_head(method, card, format, maps=maps)
    if trains_trunk(method):
        return head
    return (tower or convert_tower(method, format)).join(head)


def trains_trunk(method: Method) -> bool:
    """Return whether a method uses pixels directly, so that it cannot share a tower."""
    return "pixels" in method.needs


def tower_features(method: Method) -> tuple[FeatureName, ...]:
    """Return the features of a method's tower: the same for most methods on a backbone, so that they share it."""
    shared: tuple[FeatureName, ...] = ("trunk", "regions", "pooled")
    return (*shared, *sorted(set(method.needs) - set(shared)))


def convert_tower(method: Method, format: GraphFormat) -> Tower:
    """Convert a method's backbone to a graph from "pixels" to `tower_features`; raises as `build_graph`."""
    module = FeatureGraph(method.backbone, tower_features(method))
    return Tower(format, _convert(module, example_pixels(method.backbone), format))


def convert_head(method: Method, card: ModelCard, format: GraphFormat, *, maps: bool) -> Graph:
    """Convert a method to a graph from its backbone's features to "probabilities", "logits" and "embedding".

    With `maps` the outputs include "map_…" and "attention". If the method trains the trunk, the graph starts at
    "pixels". Arguments and errors are those of `build_graph`.
    """
    exclusive, backbone = card.task == "singlelabel", method.backbone
    if trains_trunk(method):
        whole = PhotoGraph(method, exclusive=exclusive, maps=maps, embedding=True)
        return Graph(format, _convert(whole, example_pixels(backbone), format), card)
    head = HeadGraph(method, exclusive=exclusive, maps=maps, embedding=True)

    def features(pixels: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        with torch.no_grad():
            found = backbone.features(torch.from_numpy(pixels), head.needs)
        return {name: values.numpy() for name, values in found.items()}

    # Features of real bright and dark inputs: arbitrary arrays of this shape may not be valid features.
    noise = example_pixels(backbone, batch=3)
    return Graph(
        format,
        _convert(head, features(example_pixels(backbone)), format, others=[features(noise + 1), features(-noise - 1)]),
        card,
    )


def _convert(module: nn.Module, example: Inputs, format: GraphFormat, *, others: Sequence[Inputs] = ()) -> Any:
    if format == "openvino":
        return to_openvino(module, example, others=others)
    return to_onnx(module, example, others=others).SerializeToString()
