"""Display of predictions and evidence in notebooks, as plots and as tables."""

import re

import matplotlib
import numpy as np
import pytest
from PIL import Image

import intclip
from intclip.data.demo_photos import demo_photos
from intclip.errors import IntclipError, MissingExtraError
from intclip.evidence.heat import overlay
from intclip.evidence.words import WordEvidence
from intclip.inference.display import MOST_SHOWN, UNCLEAR, headline
from intclip.inference.prediction import Prediction, Predictions
from intclip.labels.reading import parse_taxonomy

matplotlib.use("agg")

LABELS = parse_taxonomy(["source", "<b>bold</b> $x$", "joy"], "test")


def prediction(*values: float, source: str = "a.jpg", error: str | None = None) -> Prediction:
    return Prediction(np.array(values, np.float32), np.array([0.5, 0.5, 0.4], np.float32), LABELS, source, error)


@pytest.fixture(scope="module")
def model():
    return intclip.load("lite", engine="torch")


def test_a_headline_names_what_holds_most_probable_first():
    assert headline(prediction(0.6, 0.7, 0.1)) == "Probably: <b>bold</b> $x$ 0.70, source 0.60"
    assert headline(prediction(0.1, 0.1, 0.39)) == "No clear intent"
    assert "gone" in headline(prediction(*[np.nan] * 3, error="gone"))


def test_predictions_are_a_list_and_a_frame_of_the_same_numbers(model):
    found = model.predict(demo_photos()[:2])
    assert isinstance(found, list)
    frame = found.to_pandas()
    assert list(frame.columns) == ["source", "error", "labels", *model.taxonomy.names]
    np.testing.assert_array_equal(
        frame[list(model.taxonomy.names)].to_numpy(np.float32), np.stack([one.probabilities for one in found])
    )
    assert frame["labels"].tolist() == [one.labels for one in found]
    assert frame["error"].isna().all()
    assert len(Predictions().to_pandas()) == 0


def test_a_label_that_is_called_like_a_column_keeps_its_numbers():
    frame = Predictions([prediction(0.25, 0.5, 0.75)]).to_pandas()
    assert frame["source"].tolist() == ["a.jpg"]
    assert len(set(frame.columns)) == 6
    assert frame.iloc[0, 3:].tolist() == [0.25, 0.5, 0.75]


def test_without_pandas_one_line_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="notebook"):
        Predictions([prediction(0.1, 0.2, 0.3)]).to_pandas()


def test_html_has_the_photo_and_takes_all_text_as_text(model):
    (found,) = model.predict(demo_photos()[0])
    shown = found._repr_html_()
    assert "data:image/jpeg;base64," in shown
    assert f"{found.top(1)[0][1]:.2f}" in shown
    shown = prediction(0.9, 0.9, 0.1, source="<script>")._repr_html_()
    assert "<script>" not in shown
    assert "<b>bold" not in shown
    assert "<img" not in shown  # there is no such photo
    many = Predictions([prediction(0.1, 0.2, 0.3)] * (MOST_SHOWN + 3))._repr_html_()
    assert "and 3 more" in many
    assert "gone" in prediction(*[np.nan] * 3, error="gone")._repr_html_()


def test_a_plot_has_the_most_probable_labels_and_their_thresholds():
    axes = prediction(0.6, 0.7, 0.1).plot(count=2)
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([0.6, 0.7])
    assert axes.lines[0].get_xdata() == pytest.approx([0.5, 0.5])
    axes.figure.canvas.draw()  # "$x$" is drawn as it is written
    assert prediction(0.6, 0.7, 0.1).plot(ax=axes) is axes


def test_evidence_shows_the_photo_beside_the_photo_under_the_map(model, tmp_path):
    path = demo_photos()[0]
    evidence = model.explain(path, "Inspire others")
    shown = evidence._repr_html_()
    assert len(re.findall("data:image/jpeg", shown)) == 2
    axes = evidence.plot()
    photo = Image.open(path).convert("RGB")
    np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(overlay(photo, evidence.fused, evidence.box)))
    given = evidence.plot(photo, branch="sight", ax=axes)
    assert given is axes
    with pytest.raises(IntclipError, match="nothing"):
        evidence.plot(branch="nothing")


def test_evidence_without_a_photo_file_shows_its_map(model):
    evidence = model.explain(Image.open(demo_photos()[0]), "Inspire others")
    assert len(re.findall("data:image/jpeg", evidence._repr_html_())) == 1
    assert evidence.plot().images[0].get_array().shape == (*evidence.fused.shape, 3)


def test_words_show_their_weights():
    shown = WordEvidence("<joy>", 0.9, 2.0, "log-odds", [("happy", 1.0), ("<i>", -0.5)])._repr_html_()
    assert "&lt;joy&gt;" in shown
    assert "&lt;i&gt;" in shown
    assert "<mark" in shown


def test_a_prediction_in_a_console_is_its_answer():
    assert repr(prediction(0.6, 0.7, 0.1, source="a.jpg")) == "<Prediction a.jpg: <b>bold</b> $x$ 0.70, source 0.60>"
    assert UNCLEAR in repr(prediction(0.1, 0.2, 0.3))
    assert "gone" in repr(prediction(*[np.nan] * 3, error="gone"))


def test_a_slice_of_predictions_has_their_methods():
    many = Predictions([prediction(0.1, 0.2, value) for value in (0.3, 0.4, 0.5)])
    assert len(many[1:].to_pandas()) == 2
    assert many[1:][0] is many[-2] is many[1]
