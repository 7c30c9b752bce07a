"""The table of backbones in docs/backbones.md is what the command prints."""

from benchmarks.readme_results import ROOT
from benchmarks.splits import rows


def test_the_document_has_the_table():
    lines = (ROOT / "docs" / "backbones.md").read_text("utf-8").splitlines()
    assert [row for row in rows() if row not in lines] == [], "run: python -m benchmarks.splits"
