"""Fixtures for every room."""

import pytest

from fakes import TinyBackbone, tiny_taxonomy
from intclip.labels.taxonomy import Taxonomy


@pytest.fixture
def tiny_backbone() -> TinyBackbone:
    return TinyBackbone()


@pytest.fixture
def five_classes() -> Taxonomy:
    return tiny_taxonomy()
