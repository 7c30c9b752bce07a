"""What the service is asked and what it answers, as data; the server and the client share it."""

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

Branch = Literal["fused", "sight", "semantic"]
"""A map of evidence."""


def check_key(key: str) -> None:
    """Whether a key may travel in a header.

    Raises:
        ValueError: It may not; the message does not show it.
    """
    if not re.fullmatch(r"[!-~]+", key):
        raise ValueError("api_key travels in a header: letters, digits and signs of ASCII, no blanks")


def _from_base64(value: Any) -> Any:
    """Bytes of a base64 text or a data URL; those of a file as they are."""
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
        hint = "; addresses are not fetched, send the photo itself" if "://" in value[:16] else ""
        raise ValueError(f"must be the base64 of a photo file{hint}") from None


Photo = Annotated[
    bytes,
    BeforeValidator(_from_base64),
    WithJsonSchema({"type": "string", "format": "byte", "description": "A photo file in base64."}),
]


def _from_form(value: Any) -> Any:
    """Of a form's text only the two words of JSON; pydantic takes "0", "off", "y" and more."""
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


Switch = Annotated[bool, Field(strict=True), BeforeValidator(_from_form)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class PredictRequest(_Asked):
    """Which photos, and how to read them.

    Attributes:
        images: One or many photos; null for a post without one.
        texts: The posts' words, as many as there are photos, or without any photo; null where a post has none.
        model: Its name; the first of `/v1/models` by default.
        threshold: A label holds from this probability on; the model's own by default.
        level: Read the scores at this level of the taxonomy; labels stay as they are.
    """

    images: list[Photo | None] = []
    texts: list[str | None] = []
    model: str | None = None
    threshold: float | None = Field(None, ge=0, le=1)
    level: str | None = None


class ExplainRequest(_Asked):
    """A photo, or a text, and a label.

    Attributes:
        image: The photo; null to explain a text.
        text: The text; null to explain a photo.
        label: Name or alias of a label.
        model: The model's name; the first of `/v1/models` by default.
        picture: Send the photo with the map drawn over it.
        branch: Which map to draw.
        fine: Read enlarged parts of the photo too, for a finer map; ten passes in place of one.
    """

    image: Photo | None = None
    text: str | None = None
    label: str
    model: str | None = None
    picture: Switch = False
    branch: Branch = "fused"
    fine: Switch = False

    @model_validator(mode="after")
    def _has_one(self) -> "ExplainRequest":
        if (self.image is None) == (self.text is None):
            raise ValueError("give either image or text")
        return self


class Result(BaseModel):
    """What the model says of one photo.

    Attributes:
        source: The file's name, or "image 1", "text 1", counted in the request.
        error: Why the photo could not be read; null when it could.
        labels: Names at or above their thresholds.
        clear: Whether there are any; false means "no clear intent".
        scores: Name to probability; null where there is an error.
        conflict: How far photo and words contradict each other, from 0 to 1, of a post that has both, by a model that
            reads either alone; null elsewhere.
        disputed: Labels that one of the two holds and the other does not: name to the probabilities by the photo alone
            and by the words alone, the widest gap first.
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
        model: Who answered.
        taxonomy: Its labels.
        level: Level of the scores.
        results: One a photo.
    """

    model: str
    taxonomy: str
    level: str
    results: list[Result]


class Box(BaseModel):
    """A part of the upright photo, in its pixels.

    Attributes:
        left: From the left edge.
        top: From the upper edge.
        right: From the left edge.
        bottom: From the upper edge.
    """

    left: float
    top: float
    right: float
    bottom: float


class Explanation(BaseModel):
    """Where in a photo, or in which words, a label's evidence lies.

    Attributes:
        model: The model's name.
        label: The label's name.
        probability: Of the label; null where a model scores a text by similarity alone.
        branches: Maps that are the model's own.
        regions: Map to its region logits (h, w), of a fine map (4h, 4w): the sign tells for or against the label.
        box: The part of the photo that the model saw; null for a text.
        picture: The photo with the map over it, JPEG in base64, longer side at most 1,024 pixels; null by default.
        words: The words of a text with their weights: above 0 a word speaks for the label, below 0 against it.
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


class ModelInfo(BaseModel):
    """A model that is served.

    Attributes:
        name: What requests call it.
        method: How it was made.
        backbone: Its towers.
        taxonomy: Its labels; `/v1/taxonomies` lists them.
        task: Whether exactly one label holds or any number.
        reads: "image", "text" or both.
        explains_words: Whether `/v1/explain` takes a text.
        evidence: Whether `/v1/explain` takes a photo.
        engine: Which library computes.
        arithmetic: "float32" or "int8".
        input_size: Side of the square it sees, in pixels.
        default: Whether it answers where a request names none.
        note: What a reader of its answers should know, in one sentence; null where there is nothing to say.
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


class TaxonomyInfo(BaseModel):
    """Labels of a served model.

    Attributes:
        name: Such as "intentonomy".
        models: Names of the models that have it.
        levels: Level to its names, fine to coarse.
        parents: Label to its ancestors, nearest first.
        thresholds: Label to the probability it holds from, by model.
        definitions: Label to its definition, where there is one.
        exclusive: Whether exactly one label holds.
        source: Where the labels come from.
    """

    name: str
    models: list[str]
    levels: dict[str, list[str]]
    parents: dict[str, list[str]]
    thresholds: dict[str, dict[str, float]]
    definitions: dict[str, str]
    exclusive: bool
    source: str


class State(BaseModel):
    """Whether the service lives, or takes requests.

    Attributes:
        status: "ok", "starting" or "stopping".
    """

    status: Literal["ok", "starting", "stopping"]


class Problem(BaseModel):
    """Why a request was refused.

    Attributes:
        detail: One line: what, where, how to mend it.
    """

    detail: str
