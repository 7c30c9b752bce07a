"""Fixtures of the queue, the API and its client."""

import pytest
from watched import WatchedPredictor


@pytest.fixture
def watched() -> WatchedPredictor:
    return WatchedPredictor()
