"""Every test in this folder has its own cache."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """See `own_cache`."""


@pytest.fixture(scope="session")
def exported(bundle_path, tmp_path_factory):
    """The bundle as an OpenVINO file with maps: the fastest model to load."""
    import intclip
    from tiny_models import tiny_known

    with tiny_known() as patch:
        patch.setenv("INTCLIP_CACHE", "off")
        model = intclip.load(bundle_path, engine="openvino")
        return model.export(tmp_path_factory.mktemp("cli") / "tiny.xml", "openvino", maps=True)
