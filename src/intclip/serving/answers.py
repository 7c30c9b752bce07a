"""Requests and responses of the service, shared by server and client."""

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

MapName = Literal["fused", "sight", "semantic"]
"""A map of evidence."""
MapKind = Literal["regions", "fine"]
"""A kind of evidence in a photo: the model's own map, or a finer one from ten passes; see `intclip.evidence.kinds`."""


def check_key(key: str) -> None:
    """Check that a key is valid in a header.

    Raises:
        ValueError: It is not; the message does not contain it.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("api_key must be ASCII letters, digits and punctuation, without spaces")


def _from_base64(value: Any) -> Any:
    """Decode base64 or a data URL; return a file's bytes unchanged."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError("must be the base64 of a photo file")
    text = value
    if value.startswith("data:"):
        head, _, text = value.partition(",")
        if not head.endswith(";base64"):
            raise ValueError("a data URL must be base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        hint = "; URLs are not fetched, send the photo itself" if "://" in value[:16] else ""
        raise ValueError(f"must be the base64 of a photo file{hint}") from None


Base64Photo = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema({"type": "string", "format": "byte", "description": "A photo file in base64."}),
]


def _from_form(value: Any) -> Any:
    """Accept only JSON's two words in a form; pydantic accepts "0", "off", "y" and more."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, Field(strict=True), BeforeValidator(_from_form)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PredictRequest(_Asked):
    """A request for predictions.

    Attributes:
        images: One or more photos; null for a post without one.
        texts: The posts' texts, one per photo, or without photos; null for a post without text.
        model: Model name; default: the first of `/v1/models`.
        threshold: Smallest probability of a predicted label; default: the model's.
        level: Level of the taxonomy for the scores; labels are not affected.
    """

    images: list[Base64Photo | None] = []
    texts: list[str | None] = []
    model: str | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    level: str | None = None


class ExplainRequest(_Asked):
    """A request for evidence: a photo or a text, and a label.

    Attributes:
        image: The photo; null to explain a text.
        text: The text; null to explain a photo.
        label: Name or alias of a label.
        model: Model name; default: the first of `/v1/models`.
        picture: Return the photo with the map overlaid.
        branch: Map to draw.
        kind: "regions", or "fine" to also use enlarged parts of the photo, for a finer map; ten passes instead of one.
    """

    image: Base64Photo | None = None
    text: str | None = None
    label: str
    model: str | None = None
    picture: Switch = False
    branch: MapName = "fused"
    kind: MapKind = "regions"

    @model_validator(mode="after")
    def _has_one(self) -> "ExplainRequest":
        if (self.image is None) == (self.text is None):
            raise ValueError("give either image or text")
        return self


class Result(BaseModel):
    """Prediction for one post.

    Attributes:
        source: The file's name, or "image 1", "text 1", counted in the request.
        error: Why the photo could not be read; null on success.
        labels: Names at or above their thresholds.
        clear: Whether there are any; false means "no clear intent".
        scores: Name to probability; null on error.
        conflict: How much photo and text contradict each other, from 0 to 1; null unless the post has both and the
            model can use each alone.
        disputed: Labels predicted by only one channel: name to the probabilities by photo and by text, widest gap
            first.
    """

    source: str
    error: str | None
    labels: list[str]
    clear: bool = False
    scores: dict[str, float] | None
    conflict: float | None = None
    disputed: dict[str, tuple[float, float]] = {}


class PredictAnswer(BaseModel):
    """Results in the order of the photos.

    Attributes:
        model: Name of the model.
        taxonomy: Its labels.
        level: Level of the scores.
        results: One per post.
    """

    model: str
    taxonomy: str
    level: str
    results: list[Result]


class Box(BaseModel):
    """A box in pixels of the upright photo.

    Attributes:
        left: Left edge.
        top: Top edge.
        right: Right edge.
        bottom: Bottom edge.
    """

    left: float
    top: float
    right: float
    bottom: float


class Explanation(BaseModel):
    """Evidence for a label in a photo or a text.

    Attributes:
        model: The model's name.
        label: The label's name.
        probability: Probability of the label; null if the model scores text by similarity only.
        branches: Maps that the model has.
        regions: Map name to region logits (h, w), or (4h, 4w) for a fine map: positive for, negative against the label.
        box: The part of the photo that the model saw; null for a text.
        picture: The photo with the map, JPEG in base64, longer side at most 1,024 pixels; null by default.
        words: The words of a text with their weights: positive for, negative against the label.
    """

    model: str
    label: str
    probability: float | None
    branches: list[str] = []
    regions: dict[str, list[list[float]]] = {}
    box: Box | None = None
    picture: str | None = None
    words: list[tuple[str, float]] = []

    def picture_bytes(self) -> bytes | None:
        """The picture as a JPEG file."""
        return None if self.picture is None else base64.b64decode(self.picture)


class Figure(BaseModel):
    """A metric with its 95 % interval.

    Attributes:
        value: The metric.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


class ModelInfo(BaseModel):
    """A served model.

    Attributes:
        name: Its name in requests.
        method: Its method.
        backbone: Its backbone.
        taxonomy: Its labels; `/v1/taxonomies` lists them.
        task: Single-label or multi-label.
        reads: "image", "text" or both.
        explains_words: Whether `/v1/explain` accepts a text.
        evidence: Whether `/v1/explain` accepts a photo.
        engine: Inference engine.
        arithmetic: "float32" or "int8".
        input_size: Side of its square input, in pixels.
        default: Whether it is the default model.
        note: One sentence that users of its answers should know; null if none.
        held_out: Metric to its value on photos that a trained model did not learn from: those of the test split, else
            of the validation split or of the cross-validation of `intclip fit`. Empty if unknown.
    """

    name: str
    method: str
    backbone: str
    taxonomy: str
    task: Literal["multilabel", "singlelabel"]
    reads: list[str]
    explains_words: bool
    evidence: bool
    engine: str
    arithmetic: str
    input_size: int
    default: bool
    note: str | None
    held_out: dict[str, Figure] = {}


class TaxonomyInfo(BaseModel):
    """Labels of a served model.

    Attributes:
        name: Such as "intentonomy".
        models: Names of the models that have it.
        levels: Level to its names, fine to coarse.
        parents: Label to its ancestors, nearest first.
        thresholds: Label to its threshold, by model, for posts with all channels that the model uses.
        channel_thresholds: The same for posts with one channel ("image", "text") only, by model and channel; none for
            models that use one channel.
        definitions: Label to its definition, if any.
        exclusive: Whether exactly one label applies.
        source: Origin of the labels.
    """

    name: str
    models: list[str]
    levels: dict[str, list[str]]
    parents: dict[str, list[str]]
    thresholds: dict[str, dict[str, float]]
    channel_thresholds: dict[str, dict[str, dict[str, float]]] = {}
    definitions: dict[str, str]
    exclusive: bool
    source: str


class State(BaseModel):
    """State of the service.

    Attributes:
        status: "ok", "starting" or "stopping".
    """

    status: Literal["ok", "starting", "stopping"]


class Problem(BaseModel):
    """Error response.

    Attributes:
        detail: One line: what is wrong, where, and how to fix it.
    """

    detail: str
