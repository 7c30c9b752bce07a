"""The audit's handling of pip-audit's reports, offline."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture
def chain():
    path = Path(__file__).parents[1] / ".ci" / "supply_chain.py"
    spec = importlib.util.spec_from_file_location("supply_chain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_known_vulnerability_fails_and_is_named(chain):
    flaw = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": [], "description": "x"}
    found = [
        {"name": "a", "version": "1.0", "vulns": [flaw]},
        {"name": "b", "version": "2", "vulns": []},
        {"name": "c", "skip_reason": "not found"},
    ]
    code, told = chain.judge(found)
    assert code == 1
    assert told == [
        "audit: 2 pinned versions, 1 known vulnerabilities",
        "a 1.0: PYSEC-1, mended in 1.1",
        "nothing is known of: c",
    ]
    assert chain.judge(found[1:])[0] == 0


@pytest.mark.parametrize("answer", [None, [{"name": "packaging", "skip_reason": "not found"}]])
def test_without_a_network_one_line_and_no_failure(chain, monkeypatch, capsys, answer):
    monkeypatch.setattr(chain, "tool", lambda name: Path(name))
    monkeypatch.setattr(chain, "ask", lambda program, requirements: answer)
    assert chain.audit() == 0
    assert capsys.readouterr().out == "audit skipped: the list of known vulnerabilities cannot be reached from here\n"
    monkeypatch.setattr(chain, "tool", lambda name: None)
    assert chain.sbom() == chain.audit() == 0
    assert capsys.readouterr().out.count("cannot be installed here") == 2
