"""Distillation: targets, thresholds, and the reported agreement."""

import json

import numpy as np
import pytest
from PIL import Image

import intclip
from intclip.errors import DatasetError, StorageError
from intclip.evaluation.saved import read_evaluation
from intclip.training.distill import AGREEMENT, distill, soft_labels

STUDENT = (
    "backbone.name=tiny", "method.name=linear_probe", "method.options={}", "schedule.epochs=2", "cache.path=off",
    "cache.views=0", "train.device=cpu", "optim.ema=null", "augment=null",
)  # fmt: skip


@pytest.fixture
def unlabelled(tmp_path):
    folder = tmp_path / "unlabelled"
    folder.mkdir()
    for number in range(60):
        colour = tuple(int(value) for value in np.random.default_rng(number).integers(0, 256, 3))
        Image.new("RGB", (40, 40), colour).save(folder / f"{number:02}.png")
    (folder / "damaged.png").write_bytes(b"noise")
    return sorted(folder.iterdir())


@pytest.fixture
def teacher(own_cache, bundle_path):
    return intclip.load(bundle_path, engine="torch", device="cpu")


def test_targets_are_the_teachers_probabilities(teacher, unlabelled):
    samples = soft_labels(teacher, unlabelled).splits["train"]
    assert [sample.image for sample in samples] == [path for path in unlabelled if path.name != "damaged.png"]
    expected = np.stack([found.probabilities for found in teacher.predict([sample.image for sample in samples])])
    np.testing.assert_allclose(np.stack([sample.targets for sample in samples]), expected, atol=1e-5)


def test_a_student_has_its_teachers_labels_and_thresholds(teacher, unlabelled, tmp_path):
    found = distill(teacher, unlabelled, tmp_path / "student", overrides=STUDENT)
    student = intclip.load(tmp_path / "student", engine="torch", device="cpu")
    assert student.taxonomy.names == teacher.taxonomy.names
    np.testing.assert_array_equal(student.thresholds, teacher.thresholds)
    assert found.photos == 60
    assert json.loads((tmp_path / "student" / AGREEMENT).read_text()) == found.agreement

    held_out = json.loads((tmp_path / "student" / "report-val.json").read_text())["images"]
    assert found.agreement["photos"] == held_out == 6


def test_a_student_of_a_model_with_text_has_its_thresholds_for_photos(teacher, unlabelled, tmp_path, monkeypatch):
    """Regression: it had those of posts with photo and text, at which few photos have a label."""
    alone = [0.25, 0.5, 0.125, 0.75, 0.375]
    monkeypatch.setattr(teacher, "card", teacher.card.model_copy(update={"channel_thresholds": {"image": alone}}))
    found = distill(teacher, unlabelled, tmp_path / "student", overrides=STUDENT)
    student = intclip.load(tmp_path / "student", engine="torch", device="cpu")
    np.testing.assert_array_equal(student.thresholds, np.float32(alone))
    ids = read_evaluation(tmp_path / "student", "val").ids
    pairs = zip(teacher.predict(ids), student.predict(ids), strict=True)
    same = np.mean([[(n in a.labels) == (n in b.labels) for n in teacher.taxonomy.names] for a, b in pairs])
    assert found.agreement["labels"] == pytest.approx(same)


def test_the_agreement_is_that_of_the_predictions(teacher, unlabelled, tmp_path):
    found = distill(teacher, unlabelled, tmp_path / "student", overrides=STUDENT)
    ids = read_evaluation(tmp_path / "student", "val").ids
    student = intclip.load(tmp_path / "student", engine="torch", device="cpu")
    theirs, own = teacher.predict(ids), student.predict(ids)
    difference = np.mean([np.abs(a.probabilities - b.probabilities).mean() for a, b in zip(theirs, own, strict=True)])
    names = teacher.taxonomy.names
    same = np.mean([[(n in a.labels) == (n in b.labels) for n in names] for a, b in zip(theirs, own, strict=True)])
    top = np.mean([a.top(1)[0][0] == b.top(1)[0][0] for a, b in zip(theirs, own, strict=True)])
    assert found.agreement["difference"] == pytest.approx(difference, abs=1e-4)
    assert found.agreement["labels"] == pytest.approx(same)
    assert found.agreement["top_1"] == pytest.approx(top)


def test_too_few_photos_are_refused_before_anything_is_written(teacher, unlabelled, tmp_path):
    with pytest.raises(DatasetError, match="50"):
        distill(teacher, unlabelled[:20], tmp_path / "student", overrides=STUDENT)
    assert not (tmp_path / "student").exists()


def test_a_folder_with_another_run_is_refused_before_the_teacher_reads(teacher, unlabelled, tmp_path):
    distill(teacher, unlabelled, tmp_path / "student", overrides=STUDENT)
    with pytest.raises(StorageError, match="student"):
        distill(teacher, [], tmp_path / "student", overrides=STUDENT)
