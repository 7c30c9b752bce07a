"""No label stands out: the field, the JSON, the terminal's line, and the note of a small model."""

import json

import numpy as np
import pytest
import skimage.data
from PIL import Image
from typer.testing import CliRunner

import intclip
from intclip.cli.main import app
from intclip.inference.display import UNCLEAR
from intclip.inference.prediction import Prediction
from intclip.labels import load_taxonomy


def prediction(best, *, taxonomy="sentiment3", error=None):
    labels = load_taxonomy(taxonomy)
    probabilities = np.full(len(labels), 0.1, np.float32)
    probabilities[0] = best
    return Prediction(probabilities, np.full(len(labels), 0.5, np.float32), labels, "a.jpg", error)


def test_clear_is_whether_a_label_holds():
    assert prediction(0.5, taxonomy="intentonomy").clear
    unclear = prediction(0.49, taxonomy="intentonomy")
    assert not unclear.clear
    assert (unclear.to_dict()["clear"], unclear.to_dict()["labels"]) == (False, [])
    assert prediction(0.2).clear  # exclusive labels: exactly one holds
    assert prediction(0.9, error="unreadable").to_dict()["clear"] is False


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unclear")
    Image.fromarray(skimage.data.chelsea()).save(folder / "cat.jpg")
    Image.new("RGB", (300, 300), (128, 128, 128)).save(folder / "grey.png")
    return [folder / "cat.jpg", folder / "grey.png"]


def test_a_cat_is_clear_and_a_grey_surface_is_not(photos):
    cat, grey = intclip.load("lite").predict(photos)
    assert "In love with animals" in cat.labels
    assert not grey.clear


def test_the_terminal_says_so(photos):
    told = CliRunner().invoke(app, ["predict", *map(str, photos)], catch_exceptions=False)
    cat, grey = told.stdout.split(str(photos[1]))
    assert UNCLEAR in grey
    assert UNCLEAR not in cat
    assert told.stderr.count(intclip.load("lite").note) == 1
    plain = CliRunner().invoke(app, ["predict", "--json", *map(str, photos)], catch_exceptions=False)
    assert [row["clear"] for row in json.loads(plain.stdout)] == [True, False]
    assert intclip.load("lite").note not in plain.stderr
    assert intclip.load("proxy").note is None
