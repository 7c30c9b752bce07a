"""Training on a teacher's probabilities: the targets, the checks, and what the bundle keeps."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy import CLASSES, toy_dataset, toy_recipe

import intclip
from fakes import TinyBackbone, tiny_taxonomy
from intclip.errors import DatasetError, RecipeError, TrainingError
from intclip.evaluation.saved import read_evaluation
from intclip.inference.bundle import load_bundle
from intclip.methods.registry import build_method
from intclip.training.checkpoint import NEWEST
from intclip.training.loop import Trainer
from intclip.training.run import train
from intclip.training.teacher import load_teacher, with_probabilities
from tiny_models import write_bundle


@pytest.fixture
def dataset(tmp_path):
    return toy_dataset(tmp_path / "photos")


@pytest.fixture
def teacher(own_cache, dataset, tmp_path):
    return train(toy_recipe("train.seed=1"), tmp_path / "teacher", dataset=dataset, backbone=TinyBackbone()).out


def taught_run(dataset, teacher, out, *overrides, resume=False):
    recipe = toy_recipe(f"data.teacher={teacher}", *overrides)
    return train(recipe, out, resume, dataset=dataset, backbone=TinyBackbone())


def probabilities(teacher, samples):
    return np.stack([found.probabilities for found in intclip.load(teacher).predict([s.image for s in samples])])


def test_a_run_equals_one_on_a_dataset_with_the_teachers_probabilities(dataset, teacher, tmp_path):
    soft = probabilities(teacher, dataset.splits["train"])
    assert not np.isin(soft, (0, 1)).any()
    pairs = zip(dataset.splits["train"], soft, strict=True)
    by_hand = replace(dataset, splits=dataset.splits | {"train": [replace(s, targets=row) for s, row in pairs]})
    expected = train(toy_recipe(), tmp_path / "by-hand", dataset=by_hand, backbone=TinyBackbone())
    found = taught_run(dataset, teacher, tmp_path / "taught")
    weights = [(run.bundle / "weights.safetensors").read_bytes() for run in (expected, found)]
    assert weights[0] == weights[1]
    assert found.metrics["splits"] == expected.metrics["splits"]
    on_labels = train(toy_recipe(), tmp_path / "on-labels", dataset=dataset, backbone=TinyBackbone())
    assert (on_labels.bundle / "weights.safetensors").read_bytes() != weights[0]


def test_validation_and_test_keep_their_labels(dataset, teacher, tmp_path):
    out = taught_run(dataset, teacher, tmp_path / "run").out
    for split in ("val", "test"):
        np.testing.assert_array_equal(read_evaluation(out, split).targets, dataset.targets(split))


def test_a_bundle_names_its_teacher_without_the_folder(dataset, teacher, tmp_path):
    bundle = taught_run(dataset, teacher, tmp_path / "run").bundle
    assert load_bundle(bundle).info.recipe["data"]["teacher"] == "teacher"
    assert str(tmp_path) not in (bundle / "bundle.json").read_text()


def test_a_zero_shot_teacher_takes_the_labels_of_the_data(dataset, own_cache, tmp_path):
    assert load_teacher("lite", dataset.taxonomy).taxonomy == dataset.taxonomy
    run = taught_run(dataset, "lite", tmp_path / "run", "data.limit=3", "schedule.epochs=1")
    assert run.metrics["photos"]["train"] == 3


def test_photos_that_cannot_be_read_are_named_and_left_out(dataset, teacher, caplog):
    samples = dataset.splits["train"][:4]
    samples[2].image.write_bytes(b"noise")
    taught = with_probabilities(samples, intclip.load(teacher))
    assert [sample.id for sample in taught] == [samples[place].id for place in (0, 1, 3)]
    assert f"1 of 4 photos could not be read; the first: {samples[2].image}" in caplog.text


def test_photos_of_which_none_can_be_read_are_an_error(dataset, teacher):
    samples = dataset.splits["train"][:2]
    for sample in samples:
        sample.image.write_bytes(b"noise")
    with pytest.raises(DatasetError, match="none of the 2 photos"):
        with_probabilities(samples, intclip.load(teacher))


def test_a_teacher_of_another_task_is_refused(teacher, tmp_path):
    with pytest.raises(DatasetError, match="any number of labels, tiny exactly one label"):
        load_teacher(str(teacher), replace(tiny_taxonomy(CLASSES), exclusive=True))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("class 0", "class 1", "other"), "it lacks 'class 2'"),
        (("class 1", "class 0", "class 2"), "it has more, or another order"),
    ],
)
def test_a_teacher_with_other_labels_is_refused_before_anything_is_written(dataset, own_cache, tmp_path, names, what):
    taxonomy = tiny_taxonomy(CLASSES)
    parents = dict(zip(names, taxonomy.parents.values(), strict=True))
    other = replace(taxonomy, names=names, levels=taxonomy.levels | {"class": names}, parents=parents)
    write_bundle(tmp_path / "teacher", build_method("linear_probe", TinyBackbone(), other, {}), thresholds=0.5)
    with pytest.raises(DatasetError, match=what):
        taught_run(dataset, tmp_path / "teacher", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["soft_targets=false", "texts_as_images=true"])
def test_keys_that_contradict_a_teacher_are_refused(key):
    with pytest.raises(RecipeError, match="teacher gives probabilities of photos"):
        toy_recipe("data.teacher=lite", f"data.{key}")


def test_a_run_resumes_with_its_teacher_moved_but_not_with_another(dataset, teacher, tmp_path, monkeypatch):
    whole = taught_run(dataset, teacher, tmp_path / "whole")
    stop = KeyboardInterrupt()

    def interrupted(trainer, optimizer):
        save(trainer, optimizer)
        if trainer.position.epoch == 3:
            raise stop

    save = Trainer._save
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            taught_run(dataset, teacher, tmp_path / "run")
    assert (tmp_path / "run" / NEWEST).exists()
    with pytest.raises(TrainingError, match="its targets of train differ"):
        taught_run(dataset, "lite", tmp_path / "run", resume=True)
    moved = teacher.rename(tmp_path / "moved")
    resumed = taught_run(dataset, moved, tmp_path / "run", resume=True)
    weights = [(run.bundle / "weights.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]
    assert json.loads((resumed.out / "metrics.json").read_text())["best"] == whole.metrics["best"]
