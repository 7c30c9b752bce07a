"""The registry: names, options, and errors."""

import pytest

from fakes import TinyBackbone
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Options
from intclip.methods.registry import METHODS, build_method, method_class, method_options


def test_registered_names_are_folders() -> None:
    own = {name: place for name, place in METHODS.items() if place.startswith("intclip.")}  # a test may add a toy
    for name, place in own.items():
        module, _, cls = place.partition(":")
        assert module == f"intclip.methods.{name}.model"
        assert method_class(name).__name__ == cls
        assert issubclass(method_options(name), Options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("intclpi", {}, "unknown method 'intclpi'; did you mean intclip?"),
        ("zzz", {}, "unknown method 'zzz'; known: prior"),
        ("intclip", {"agregation": "paper"}, "no option 'agregation'; did you mean aggregation?"),
        ("intclip", {"aggregation": "papre"}, "option aggregation of method intclip: .*'paper'"),
        ("intclip", {"loss": {"margin": 2}}, "option loss.margin of method intclip: .*less than 1 .*got 2"),
        (
            "coop",
            {"loss": {"reduction": "none"}},
            "option loss.reduction of method coop: .*'mean'",
        ),  # no number to learn by
        ("zero-shot", {"templates": "foto"}, "unknown template set 'foto'"),
        ("zero_shot", {"templates": ["a photo"]}, "each template must hold"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(
    name: str, options: dict[str, object], message: str, tiny_backbone: TinyBackbone, five_classes: Taxonomy
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_method(name, tiny_backbone, five_classes, options)
    assert "\n" not in str(caught.value)
