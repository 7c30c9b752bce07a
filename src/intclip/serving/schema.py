"""OpenAPI schemas of requests, with the names of the served models, levels and labels."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from intclip.inference.predictor import Predictor
from intclip.serving.answers import ExplainRequest, PredictRequest, Problem
from intclip.serving.bodies import FORM, JSON
from intclip.serving.settings import Settings

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The form is malformed."},
    408: {"model": Problem, "description": "The request was too slow."},
    413: {"model": Problem, "description": "The request is too large."},
    415: {"model": Problem, "description": "Neither a form nor JSON."},
    422: {"model": Problem, "description": "The request is invalid, or none of its photos can be read."},
    429: {"model": Problem, "description": "The queue is full; retry after Retry-After seconds."},
    500: {"model": Problem, "description": "The model failed on every photo, or another internal error."},
    503: {"model": Problem, "description": "Shutting down, or timeout."},
}
UNKNOWN: dict[int | str, dict[str, Any]] = {401: {"model": Problem, "description": "The API key is missing or wrong."}}


def predict_body(models: Mapping[str, Predictor], settings: Settings) -> dict[str, Any]:
    """The request body of `/v1/predict`, for `openapi_extra`."""
    levels = sorted({level for model in models.values() for level in model.taxonomy.levels})
    words = any("text" in model.channels for model in models.values())

    def shape(form: bool) -> dict[str, Any]:
        schema = _schema(PredictRequest, form)
        fields = schema["properties"]
        _choose(fields["model"], list(models), form)
        _choose(fields["level"], levels, form)
        fields["images"] |= {"maxItems": settings.max_photos}
        if words:
            fields["texts"] |= {"maxItems": settings.max_photos}
        else:  # a request is only photos
            del fields["texts"]
            fields["images"] |= {"minItems": 1, "items": _photo(form)}
            del fields["images"]["default"]
            schema["required"] = ["images"]
        return schema

    return _body(shape(form=False), shape(form=True))


def explain_body(models: Mapping[str, Predictor]) -> dict[str, Any]:
    """The request body of `/v1/explain`, for `openapi_extra`."""
    labels = list(dict.fromkeys(name for model in models.values() for name in model.taxonomy.names))
    words = any("text" in model.alone for model in models.values())

    def shape(form: bool) -> dict[str, Any]:
        schema = _schema(ExplainRequest, form)
        fields = schema["properties"]
        _choose(fields["model"], list(models), form)
        fields["label"]["enum"] = labels
        if not words:  # only photos can be explained
            del fields["text"]
            fields["image"] = _photo(form)
            schema["required"] = ["image", "label"]
        return schema

    return _body(shape(form=False), shape(form=True))


def _schema(kind: type[BaseModel], form: bool) -> dict[str, Any]:
    """Return a model's schema; in a form, fields are never null and photos are files."""
    schema = kind.model_json_schema()
    for name in ("title", "description"):
        schema.pop(name, None)
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if not form:
            continue
        if name == "image":
            field.clear()
            field |= _photo(form)
        if "items" in field:
            field["items"] = _photo(form) if name == "images" else {"type": "string"}
        if "anyOf" in field:
            field |= next(kind for kind in field.pop("anyOf") if kind["type"] != "null")
            field.pop("default", None)
    return schema


def _choose(field: dict[str, Any], names: list[str], form: bool) -> None:
    """List the values of a text field."""
    (field if form else field["anyOf"][0])["enum"] = names


def _photo(form: bool) -> dict[str, Any]:
    return {"type": "string", "format": "binary" if form else "byte"}


def _body(as_json: dict[str, Any], as_form: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {FORM: {"schema": as_form}, JSON: {"schema": as_json}}}}
