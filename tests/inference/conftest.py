"""Every test in this folder has its own cache."""

import functools
import sys

import pytest


@pytest.fixture(autouse=True)
def _own_cache(own_cache):
    """See `own_cache`."""


@pytest.fixture(autouse=True)
def _operators_read_once():
    """From the second ONNX graph on, keep what the exporter else parses for each: the sources of its 500 operators."""
    function = getattr(sys.modules.get("onnxscript"), "TracedOnnxFunction", None)
    if function is not None and isinstance(function.function_ir, property):
        function.function_ir = functools.cached_property(function.function_ir.fget)
        function.function_ir.__set_name__(function, "function_ir")


@pytest.fixture(scope="session")
def exported(bundle_path, tmp_path_factory):
    """The bundle as an OpenVINO file with maps: the fastest model to load."""
    import intclip
    from tiny_models import tiny_known

    with tiny_known() as patch:
        patch.setenv("INTCLIP_CACHE", "off")
        model = intclip.load(bundle_path, engine="openvino")
        return model.export(tmp_path_factory.mktemp("cli") / "tiny.xml", "openvino", maps=True)
