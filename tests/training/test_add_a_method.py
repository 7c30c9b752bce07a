"""The page on adding a method works literally: its code, its registry line, its recipe."""

import ast
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import intclip
import intclip.methods
from fakes import TinyBackbone
from intclip.backbones.registry import BUILDERS
from intclip.cli.main import app
from intclip.inference.bundle import load_bundle
from intclip.methods.registry import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"
NAME = "class_means"
QUICK = (
    "data.name=table data.val=val data.test=test schedule.epochs=1 train.batch_size=8 train.device=cpu "
    "backbone.name=tiny backbone.engine=torch evaluate.bootstrap=20"
)


def pieces() -> dict[str, str]:
    """Return the page's code blocks by path in the repository."""
    found = re.findall(r"^`(src/[^`]+)`[^\n]*\n\n```\w+\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return dict(found)


@pytest.fixture
def added(tmp_path, monkeypatch) -> Path:
    """Install the page's method where `intclip.methods` looks; return the recipe's file."""
    code = pieces()
    folder = tmp_path / "methods" / NAME
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Class means."""\n', encoding="utf-8")
    (folder / "model.py").write_text(code[f"src/intclip/methods/{NAME}/model.py"], encoding="utf-8")
    monkeypatch.setattr(intclip.methods, "__path__", [*intclip.methods.__path__, str(folder.parent)])
    for name, module in ast.literal_eval("{" + code["src/intclip/methods/registry.py"] + "}").items():
        monkeypatch.setitem(METHODS, name, module)
    monkeypatch.setitem(BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    recipe = tmp_path / f"{NAME}.yaml"
    recipe.write_text(code[f"src/intclip/recipes/{NAME}.yaml"], encoding="utf-8")
    yield recipe
    for module in [name for name in sys.modules if name.startswith(f"intclip.methods.{NAME}")]:
        del sys.modules[module]


@pytest.fixture
def table(tmp_path) -> Path:
    """Photos with none, one or both of two labels, determined by colour, in three splits."""
    rng = np.random.default_rng(0)
    lines = ["path,labels,split"]
    for i in range(32):
        warm, light = i % 2, i // 2 % 2
        colour = np.array([60 + 120 * warm, 60, 60]) + 60 * light
        name = f"{i}.jpg"
        Image.fromarray(np.clip(rng.normal(colour, 10, (48, 48, 3)), 0, 255).astype(np.uint8)).save(tmp_path / name)
        labels = ";".join(label for label, there in (("warm", warm), ("light", light)) if there)
        lines.append(f"{name},{labels},{'train' if i < 16 else 'val' if i < 24 else 'test'}")
    (tmp_path / "photos.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path / "photos.csv"


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_method_of_the_page_trains_evaluates_bundles_loads_and_predicts(added, table, tmp_path):
    out = tmp_path / "run"
    sets = [word for override in QUICK.replace("=table", f"={table}").split() for word in ("--set", override)]
    metrics = json.loads(run("train", added, *sets, "--set", "cache.path=off", "--out", out, "--json"))
    assert metrics["method"] == NAME
    assert metrics["learnable_parameters"] == 1 + 2
    words = ["evaluate", out, "--data", table, "--engine", "torch", "--split", "test", "--bootstrap", 0, "--json"]
    report = json.loads(run(*words))
    assert report["labels"] == ["light", "warm"] or report["labels"] == ["warm", "light"]
    assert report["mAP"] == pytest.approx(metrics["splits"]["test"]["headline"]["mAP"], abs=1e-6)
    bundle = load_bundle(out / "bundle")
    assert set(bundle.state) == {"means", "scale", "bias"}
    np.testing.assert_allclose(np.linalg.norm(bundle.state["means"], axis=1), 1, atol=1e-5)
    (prediction,) = intclip.load(str(out), engine="torch").predict([str(table.with_name("31.jpg"))])
    assert set(prediction.scores) == {"warm", "light"}
    assert ((prediction.probabilities > 0) & (prediction.probabilities < 1)).all()


def test_the_page_touches_one_folder_one_line_and_one_recipe():
    code = pieces()
    assert set(code) == {
        f"src/intclip/methods/{NAME}/model.py",
        "src/intclip/methods/registry.py",
        f"src/intclip/recipes/{NAME}.yaml",
    }
    assert len(code["src/intclip/methods/registry.py"].splitlines()) == 1
