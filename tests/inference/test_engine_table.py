"""The engine table in OpenVINO, for CLIP and the embedded backbones; see `engine_table`."""

import pytest
from engine_table import METHOD_NAMES, OTHERS, check

from families import FAMILIES, family_of
from intclip.backbones.registry import backbone_names


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in OTHERS])
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_openvino_gives_torch_s_numbers(method, family):
    check("openvino", method, FAMILIES[family](), family)


def test_every_registered_backbone_is_of_a_family_in_the_table():
    named = set(backbone_names()) - {"tiny"}  # of the fixture, for all tests of this folder
    assert {family_of(name) for name in named} <= set(FAMILIES)
