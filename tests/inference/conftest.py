"""A registered tiny backbone, a bundle, photos of every kind, and the command line."""

import sys
from pathlib import Path

import pytest
from tiny_models import write_bundle, write_photos

from fakes import TinyBackbone
from intclip.backbones import registry
from intclip.cli.main import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test has a cache of its own, and knows a backbone named "tiny"."""
    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["intclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        return leaving.value.code, captured.out, captured.err

    return run
