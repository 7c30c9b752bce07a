"""Every test in this folder has its own cache."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """See `own_cache`."""
