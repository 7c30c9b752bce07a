import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy import toy_dataset, toy_recipe
from toy_method import ToyMethod

from fakes import TinyBackbone
from intclip.data.sample import Dataset, Sample
from intclip.errors import StorageError, TrainingError
from intclip.studies.ablation import PRELOAD
from intclip.training.checkpoint import NEWEST, PREVIOUS
from intclip.training.logbook import read_log
from intclip.training.run import train

OVERRIDES = [
    "method.name=toy_method",
    "augment={flip: 0.5}",
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "optim.ema=0.9",
    "optim.clip_norm=1.0",
    "train.checkpoint_every=2",
    "train.accumulate=2",
]
TIMES = ("seconds", "seconds_left", "images_per_second")


def run_slowly(photos: Path, out: Path) -> None:
    """Do a whole run with slow steps, so that a kill hits the middle."""
    step = ToyMethod.after_step
    ToyMethod.after_step = lambda self: (step(self), time.sleep(0.03))[0]
    train(toy_recipe(*OVERRIDES), out, resume=True, dataset=toy_dataset(photos), backbone=TinyBackbone())


def timeless(path: Path) -> list[dict]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in read_log(path)]


def contents(out: Path) -> dict[str, bytes]:
    """Return all files of a finished run, without log and times."""
    files = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    metrics = json.loads(files.pop("metrics.json"))
    metrics.pop("seconds")
    metrics.pop("cost")
    files.pop("log.jsonl")
    return files | {"metrics": json.dumps(metrics).encode()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(toy_recipe(*OVERRIDES), out, dataset=toy_dataset(out.parent / "photos"), backbone=TinyBackbone())
    return out


def test_killed_run_equals_unbroken_one_bit_for_bit(tmp_path, unbroken):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "toy_method"])
    photos, out = unbroken.parent / "photos", tmp_path / "run"
    rng = random.Random(7)
    kills, steps = 0, []
    for attempt in range(12):
        child = context.Process(target=run_slowly, args=(photos, out))
        before = newest_time(out)
        child.start()
        if attempt < 5:
            # Wait past the next checkpoint, and a random part of a step more.
            deadline = time.monotonic() + 60
            while newest_time(out) == before and child.is_alive() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.08))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                kills += 1
                steps.append(read_log(out / "log.jsonl")[-1]["step"])
        child.join()
        if child.exitcode == 0:
            break
    assert child.exitcode == 0
    assert kills >= 4
    assert contents(out) == contents(unbroken)
    assert timeless(out / "log.jsonl") == timeless(unbroken / "log.jsonl")
    assert any(step % 5 for step in steps), "no kill fell into the middle of an epoch"


def newest_time(out: Path) -> int:
    path = out / NEWEST
    return path.stat().st_mtime_ns if path.exists() else 0


def stop_at(monkeypatch, step: int) -> None:
    """Make the run fail at a step, like a full disk or a bug."""
    original = ToyMethod.after_step

    def after_step(self: ToyMethod) -> None:
        original(self)
        if int(self.steps) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(ToyMethod, "after_step", after_step)


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, unbroken, monkeypatch):
    photos, out = unbroken.parent / "photos", tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            train(toy_recipe(*OVERRIDES), out, dataset=toy_dataset(photos), backbone=TinyBackbone())
    assert (out / PREVIOUS).exists()
    content = bytearray((out / NEWEST).read_bytes())
    content[-3] ^= 1
    (out / NEWEST).write_bytes(content)
    train(toy_recipe(*OVERRIDES), out, resume=True, dataset=toy_dataset(photos), backbone=TinyBackbone())
    assert contents(out) == contents(unbroken)


def test_finished_run_is_returned_as_it_is(unbroken):
    before = {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")}
    result = train(toy_recipe(*OVERRIDES), unbroken, resume=True)
    assert result.metrics["splits"]["test"]["photos"] == 16
    assert {path: path.stat().st_mtime_ns for path in unbroken.rglob("*")} == before


def test_directory_of_a_run_is_refused_without_resume(unbroken):
    with pytest.raises(StorageError, match="--resume"):
        train(toy_recipe(*OVERRIDES), unbroken)


def test_other_recipe_is_refused_and_named(unbroken):
    with pytest.raises(TrainingError, match=r"optim.*lr.*0\.05.*0\.5"):
        train(toy_recipe(*OVERRIDES, "optim.lr=0.5"), unbroken, resume=True)


def renamed(dataset: Dataset) -> Dataset:
    taxonomy = dataset.taxonomy
    names = (*taxonomy.names[:2], "another name")
    return replace(dataset, taxonomy=replace(taxonomy, names=names, levels={"class": names}))


def with_train(dataset: Dataset, samples: list[Sample]) -> Dataset:
    return replace(dataset, splits={**dataset.splits, "train": samples})


def flipped_target(dataset: Dataset) -> Dataset:
    first, *others = dataset.splits["train"]
    return with_train(dataset, [replace(first, targets=1 - first.targets), *others])


def other_sentences(dataset: Dataset) -> Dataset:
    forms = {form: tuple(f"{text} again" for text in texts) for form, texts in dataset.taxonomy.sentence_forms.items()}
    return replace(dataset, taxonomy=replace(dataset.taxonomy, sentence_forms=forms))


def other_photo(dataset: Dataset) -> Dataset:
    first, second, *others = dataset.splits["train"]
    return with_train(dataset, [replace(first, image=second.image), second, *others])


CHANGES = {
    r"label 3.*'class 2'.*'another name'": renamed,
    "targets of train": flipped_target,
    "taxonomy": other_sentences,
    "photo ids of train": lambda d: with_train(d, d.splits["train"][::-1]),
    "number of photos of train": lambda d: with_train(d, d.splits["train"][1:]),
    "photo files of train": other_photo,
    "texts of train": lambda d: with_train(d, [replace(s, text="words") for s in d.splits["train"]]),
    "positive share": lambda d: replace(d, positive_share=0.9),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run that failed in its third epoch."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(KeyboardInterrupt):
            train(toy_recipe(*OVERRIDES), out, dataset=toy_dataset(out.parent / "photos"), backbone=TinyBackbone())
    return out


@pytest.mark.parametrize("named", CHANGES)
def test_changed_data_are_refused_and_named(stopped, named):
    dataset = CHANGES[named](toy_dataset(stopped.parent / "photos"))
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(TrainingError, match=named):
        train(toy_recipe(*OVERRIDES), stopped, resume=True, dataset=dataset, backbone=TinyBackbone())
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_other_weights_are_refused(stopped):
    backbone = TinyBackbone()
    next(backbone.trunk.parameters()).data[0] += 1e-3
    dataset = toy_dataset(stopped.parent / "photos")
    with pytest.raises(TrainingError, match="backbone weights"):
        train(toy_recipe(*OVERRIDES), stopped, resume=True, dataset=dataset, backbone=backbone)


def test_resuming_a_finished_run_says_so(unbroken, caplog):
    with caplog.at_level("INFO", logger="intclip"):
        train(toy_recipe(*OVERRIDES), unbroken, resume=True)
    assert any("finished" in message and str(unbroken) in message for message in caplog.messages)


def test_places_may_differ_between_starts(unbroken):
    train(toy_recipe(*OVERRIDES, "train.log_every=1", "cache.path=elsewhere"), unbroken, resume=True)
