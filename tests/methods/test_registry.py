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
        ("intclpi", {}, "'intclpi'.*did you mean intclip"),
        ("zzz", {}, "'zzz'.*prior"),
        ("intclip", {"agregation": "paper"}, "'agregation'.*did you mean aggregation"),
        ("intclip", {"aggregation": "papre"}, "aggregation.*intclip.*'paper'"),
        ("intclip", {"loss": {"margin": 2}}, "loss.margin.*intclip.* 1.* 2"),
        (
            "coop",
            {"loss": {"reduction": "none"}},
            "loss.reduction.*coop.*'mean'",
        ),  # no number to learn by
        ("zero-shot", {"templates": "foto"}, "'foto'"),
        ("zero_shot", {"templates": ["a photo"]}, "each template must hold"),
    ],
)
def test_wrong_names_and_options_are_told_in_one_line(
    name: str, options: dict[str, object], message: str, tiny_backbone: TinyBackbone, five_classes: Taxonomy
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build_method(name, tiny_backbone, five_classes, options)
    assert "\n" not in str(caught.value)
