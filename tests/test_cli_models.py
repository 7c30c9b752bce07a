"""`intclip models`: the list, and its stated sizes."""

import json

import pytest
import torch
from typer.testing import CliRunner

from intclip.backbones.architecture import ARCHITECTURES
from intclip.backbones.clip import ClipBackbone
from intclip.backbones.hub_files import HUB_FILES, PUBLISHED
from intclip.cli.main import app
from intclip.cli.models import find_models
from intclip.errors import CheckpointError


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("INTCLIP_WEIGHTS", raising=False)


def test_every_model_is_listed_with_its_place():
    result = CliRunner().invoke(app, ["models", "--json"], catch_exceptions=False)
    found = {row["model"]: row for row in json.loads(result.stdout)}
    assert set(found) == {"lite", "lite2", "lite+lite2", "proxy", *(f"zero-shot:{name}" for name in HUB_FILES)}
    assert found["lite"]["where"] == found["proxy"]["where"] == "embedded"
    assert found["zero-shot:ViT-B/32"] | {"use": ""} == {
        "model": "zero-shot:ViT-B/32", "where": "hub", "megabytes": 605, "use": "",
    }  # fmt: skip
    assert "zero-shot:RN101" in CliRunner().invoke(app, ["models"], catch_exceptions=False).stdout


def test_weights_that_lie_there_are_found(tmp_path, monkeypatch):
    (tmp_path / "ViT-B-32.pt").write_bytes(bytes(2_000_000))
    monkeypatch.setenv("INTCLIP_WEIGHTS", str(tmp_path))
    found = {one.model: one for one in find_models()}
    assert (found["zero-shot:ViT-B/32"].where, found["zero-shot:ViT-B/32"].megabytes) == ("cache", 2)
    assert found["zero-shot:RN50"].where == "hub"


def test_a_wrong_folder_of_weights_is_named_with_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("INTCLIP_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(CheckpointError, match=r"INTCLIP_WEIGHTS .*nothing"):
        find_models()


def test_a_missing_package_is_said(monkeypatch):
    def missing(name):
        raise CheckpointError(name)

    monkeypatch.setattr("intclip.backbones.lite_towers.package_folder", missing)
    assert {one.model: one.where for one in find_models()}["lite2"] == "missing"
    assert "intclip[lite2]" in CliRunner().invoke(app, ["models"], catch_exceptions=False).stdout


@pytest.mark.parametrize("name", HUB_FILES)
def test_sizes_are_those_of_the_architectures(name):
    with torch.device("meta"):
        backbone = ClipBackbone(ARCHITECTURES[name])
    millions = sum(weight.numel() for weight in backbone.parameters()) / 1e6
    assert PUBLISHED[name].parameters == pytest.approx(millions, rel=0.002)
    assert PUBLISHED[name].size == ARCHITECTURES[name].image_size
