"""The engine table in OpenVINO, for the other families; see `engine_table`."""

import pytest
from engine_table import METHOD_NAMES, OTHERS, check

from families import FAMILIES


@pytest.mark.parametrize("family", OTHERS)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_openvino_gives_torch_s_numbers_for_other_families(method, family):
    check("openvino", method, FAMILIES[family](), family)
