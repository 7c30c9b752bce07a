"""Shared fixtures: a tiny backbone and its bundle, photos, a separate cache, the command line."""

import sys
from pathlib import Path

import pytest

from fakes import TinyBackbone, tiny_taxonomy
from intclip.labels.taxonomy import Taxonomy

# As in `intclip.extras`, for tests that import OpenVINO themselves: each event is a process, hundreds per conversion.
sys.modules.setdefault("openvino_telemetry", None)


@pytest.fixture
def tiny_backbone() -> TinyBackbone:
    return TinyBackbone()


@pytest.fixture
def five_classes() -> Taxonomy:
    return tiny_taxonomy()


@pytest.fixture
def own_cache(tmp_path_factory, monkeypatch):
    """Give the test its own cache and a backbone named "tiny"."""
    from intclip.backbones import registry

    monkeypatch.setenv("INTCLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory) -> Path:
    from tiny_models import write_bundle

    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> list[Path]:
    from tiny_models import write_photos

    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture
def cli(capsys, monkeypatch):
    """Run the command line in this process: (exit code, standard output, standard error)."""
    from intclip.cli.main import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["intclip", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        captured = capsys.readouterr()
        return leaving.value.code, captured.out, captured.err

    return run
