"""Everything that can be chosen by name is documented."""

from pathlib import Path
from typing import get_args

import pytest

from intclip.backbones.registry import backbone_names
from intclip.cli.explain import DrawnKind
from intclip.data import DATASETS
from intclip.evidence.kinds import KINDS
from intclip.labels import builtin_taxonomies
from intclip.methods.registry import METHODS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("names", "pages"),
    [
        (DATASETS, ["datasets.md"]),
        (builtin_taxonomies(), ["labels.md"]),
        (backbone_names(), ["backbones.md"]),
        (KINDS, ["evidence.md"]),
        (
            [name for name, place in METHODS.items() if place.startswith("intclip.")],
            ["training.md", "posts.md", "results.md", "backbones.md"],
        ),
    ],
    ids=["datasets", "taxonomies", "backbones", "evidence", "methods"],
)
def test_every_name_is_documented(names, pages):
    text = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in pages)
    assert not [name for name in names if name not in text]


def test_the_command_line_draws_every_kind_of_evidence():
    assert set(get_args(DrawnKind)) == {*KINDS, "prompts"}
