"""int8 by post-training quantisation, with activation ranges measured on the user's photos."""

import contextlib
import io
import logging
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.data.images import ImageInput
from intclip.data.loading import array_batches
from intclip.errors import ImageError
from intclip.extras import require
from intclip.inference.exported import Graph

_TOWERS = re.compile(r"\.(trunk|deep|semantic)\b")


def quantize_graph(graph: Graph, photos: Iterable[ImageInput], *, limit: int = 300) -> Graph:
    """Quantise the image towers' weights and activations of a graph to int8 (NNCF, post-training).

    Args:
        graph: In OpenVINO format.
        photos: Calibration photos; read lazily.
        limit: Maximum number used.

    Raises:
        ImageError: A photo cannot be read, or there are none.
        MissingExtraError: nncf is not installed.
    """
    nncf = _import_nncf()
    pixels = list(_pixels(graph, islice(photos, limit)))
    if not pixels:
        raise ImageError("int8 needs calibration photos; give a folder of a few hundred")
    outside = [op.get_friendly_name() for op in graph.model.get_ops() if not _in_tower(op)]
    with _quiet():
        quantized = nncf.quantize(
            graph.model.clone(),  # do not modify the float graph
            nncf.Dataset(pixels),
            subset_size=len(pixels),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER if "ViT" in graph.card.backbone else None,
            ignored_scope=nncf.IgnoredScope(names=outside, validate=False),
            # Half the range of weights in every layer: CPUs without VNNI saturate sums of full-range products. Measured
            # on `lite`, the correlation with float logits rises from 0.971 to 0.992.
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
    return Graph("openvino", quantized, graph.card.model_copy(update={"arithmetic": "int8"}))


def _in_tower(op: Any) -> bool:
    """Return whether an operation belongs to the image towers, which are quantised.

    Later operations (projection, similarities, pooling) are a hundredth of the work and sensitive to
    small differences, so they stay in float. A convolution with a folded batch norm has lost its module's name; only
    the towers have such.
    """
    name = op.get_friendly_name()
    return bool(_TOWERS.search(name)) or ("__module." not in name and op.get_type_name() == "Convolution")


def _pixels(graph: Graph, photos: Iterable[ImageInput]) -> Iterator[npt.NDArray[np.float32]]:
    for batch in array_batches(photos, graph.card.preprocessing, 1):
        for _, error in batch.errors:
            raise error
        yield batch.pixels


def _import_nncf() -> Any:
    with _quiet():
        return require("nncf", "int8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence nncf's log and progress bars."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
