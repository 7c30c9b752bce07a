"""The table of faults names tests that exist."""

import re
from pathlib import Path

HOME = Path(__file__).parents[2]


def test_every_test_that_the_table_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (HOME / "docs/faults.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, name in named:
        assert f"def {name}(" in (HOME / file).read_text(encoding="utf-8"), f"{file}::{name}"
