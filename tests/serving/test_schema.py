"""The API keeps its own OpenAPI description, under generated requests (schemathesis)."""

import base64
import os

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from watched import WatchedPredictor, photo

from intclip.serving.api import create_api
from intclip.serving.settings import Settings

EXAMPLES = int(os.environ.get("INTCLIP_SCHEMA_EXAMPLES", "10"))
"""Requests per operation; increase for a longer test."""
PHOTOS = [photo(200, 10, 10), photo(1, 2, 3, kind="JPEG"), photo(9, 9, 200, kind="WEBP")]
# Requirements for a string to be a photo, beyond its type.
schemathesis.openapi.format("byte", st.sampled_from([base64.b64encode(one).decode() for one in PHOTOS]))
schemathesis.openapi.format("binary", st.sampled_from(PHOTOS))


api = create_api({"a": WatchedPredictor()}, Settings(max_photos=4))


async def without_lifespan(scope, receive, send):
    """Return the API without lifespan: schemathesis would stop it after every operation, and it cannot restart."""
    if scope["type"] == "http":
        await api(scope, receive, send)


schema = schemathesis.openapi.from_asgi("/openapi.json", without_lifespan)


@pytest.fixture(scope="module", autouse=True)
def started():
    with TestClient(api):
        yield


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case):
    case.call_and_validate()
