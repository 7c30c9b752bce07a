"""Metadata of an exported file: labels, preprocessing, thresholds."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from intclip.backbones.preprocess import Preprocess
from intclip.errors import BundleError, IntclipError, reason
from intclip.labels.taxonomy import Taxonomy
from intclip.version import __version__

CARD_VERSION = 1
METADATA_KEY = "intclip"
"""Key of the card in ONNX's metadata and in OpenVINO's runtime information."""
MAP_PREFIX = "map_"
"""Prefix of outputs with maps of region logits (B, K, H, W)."""
ATTENTION_OUTPUT = "attention"
"""Output with the attention of semantic queries to sight regions (B, N, N)."""
EMBEDDING = "embedding"
"""Output with a photo's embedding (B, D), unit length."""
CHANNEL_PREFIX = "channel_"
"""Prefix of outputs with the probabilities (B, K) of a single channel."""
Channel = Literal["image", "text"]
Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class ModelCard(BaseModel, frozen=True, extra="forbid"):
    """Everything that prediction needs besides the graph.

    Attributes:
        card_version: Version of this layout.
        intclip: Version of the package that wrote it.
        model: Name given by the user, such as "lite".
        backbone: Name of the backbone.
        method: Name of the method.
        task: "multilabel" (probabilities are a sigmoid of the logits) or "singlelabel" (a softmax).
        labels: The K labels, in the order of the outputs.
        thresholds: K thresholds on probabilities.
        preprocessing: From photo to pixels, the graph's input "pixels" (B, 3, S, S), float32.
        maps: Names of the model's evidence maps ("sight", "semantic", "fused").
        attention: Whether outputs with maps include an "attention" (B, N, N) between regions.
        channels: Channels that the model uses. A graph uses only photos.
        alone: Channels that suffice without the other.
        channel_thresholds: Channel to the K thresholds of posts with only this one. `thresholds` apply to posts with
            all channels.
        arithmetic: "float32", or "int8" after quantisation.
        taxonomy: `Taxonomy.to_dict`.
    """

    card_version: int = CARD_VERSION
    intclip: str = __version__
    model: str
    backbone: str
    method: str
    task: Literal["multilabel", "singlelabel"]
    labels: list[str]
    thresholds: list[Threshold]
    preprocessing: Preprocess
    maps: list[str]
    attention: bool = False
    channels: list[Channel] = ["image"]
    alone: list[Channel] = ["image"]
    channel_thresholds: dict[Channel, list[Threshold]] = {}
    arithmetic: Literal["float32", "int8"] = "float32"
    taxonomy: dict[str, Any]

    def read_taxonomy(self) -> Taxonomy:
        """Return the K labels as a taxonomy."""
        return Taxonomy.from_dict(self.taxonomy)

    def threshold_array(self, channels: Sequence[Channel] | None = None) -> npt.NDArray[np.float32]:
        """Return thresholds (K,), float32, for posts with these channels; default: all of the model's."""
        if channels is not None and len(channels) == 1 and channels[0] in self.channel_thresholds:
            return np.array(self.channel_thresholds[channels[0]], dtype=np.float32)
        return np.array(self.thresholds, dtype=np.float32)

    def photos_alone(self) -> "ModelCard":
        """Return the card of the model as a graph, which does not use text."""
        thresholds = self.channel_thresholds.get("image", self.thresholds)
        change = {"channels": ["image"], "alone": ["image"], "channel_thresholds": {}, "thresholds": thresholds}
        return self.model_copy(update=change)

    def to_json(self) -> str:
        """Return the card as one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str, where: str) -> "ModelCard":
        """Read a card.

        Args:
            text: From a file's metadata.
            where: The file, for messages.

        Raises:
            BundleError: The card is damaged, contradicts itself, or is of a newer version.
        """
        try:
            content = json.loads(text)
            version = content.get("card_version")
            if isinstance(version, int) and version > CARD_VERSION:
                raise BundleError(f"{where} was exported by a newer intclip; upgrade with: pip install -U intclip")
            card = cls.model_validate(content)
            names = card.read_taxonomy().names
        except (ValidationError, IntclipError, ValueError, RecursionError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{where}: its intclip metadata is damaged ({reason(error)}); export it again") from error
        levels = [card.thresholds, *card.channel_thresholds.values()]
        if tuple(card.labels) != names or any(len(each) != len(names) for each in levels):
            raise BundleError(f"{where}: its labels, thresholds and taxonomy do not agree; export it again")
        return card
