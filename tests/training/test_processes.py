import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from launch import together
from safetensors.torch import load_file
from toy import toy_dataset, toy_recipe
from toy_method import ToyMethod

from fakes import TinyBackbone
from intclip.data import feature_cache
from intclip.training.logbook import read_log
from intclip.training.run import TrainResult, train

METHODS = {
    "sum": ["method.name=toy_method", "method.options={dropout: 0.0}"],
    "mean": ["method.name=linear_probe", "augment=null"],
}
# 41 photos in batches of 8: the last batch has one photo, so the second process has none there.
COMMON = ["train.checkpoint_every=2", "train.accumulate=2", "optim.clip_norm=5.0", "optim.ema=0.9", "augment.flip=0.5"]


def recipe(kind: str, *more: str):
    common = [override for override in COMMON if kind == "sum" or not override.startswith("augment")]
    if kind == "mean" and not torch.cuda.is_available():
        common.append("train.device=auto")  # finds the CPU, and the other process
    return toy_recipe(*METHODS[kind], *common, *more)


def one_process(rank: int, photos: Path, out: Path, kind: str, stop: int) -> None:
    if stop:
        step = ToyMethod.after_step

        def after_step(self: ToyMethod) -> None:
            step(self)
            if int(self.steps) == stop:
                os._exit(9)

        ToyMethod.after_step = after_step
    feature_cache.SHARD_PHOTOS = 4
    cached = [f"cache.path={out.parent / 'cache'}", "cache.dtype=float32"] if kind == "mean" else []
    dataset = toy_dataset(photos, train=41, rest=15)
    train(recipe(kind, *cached), out, resume=True, dataset=dataset, backbone=TinyBackbone())


def run(world: int, photos: Path, out: Path, kind: str = "sum", stop: int = 0) -> list[int | None]:
    """Train in `world` processes; return their exit codes."""
    return together(world, one_process, photos, out, kind, stop)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "photos"
    toy_dataset(folder, train=41, rest=15)
    return folder


@pytest.fixture(scope="module")
def alone(photos) -> dict[str, TrainResult]:
    results = {}
    for kind in METHODS:
        dataset = toy_dataset(photos, train=41, rest=15)
        results[kind] = train(recipe(kind), photos.parent / f"alone-{kind}", dataset=dataset, backbone=TinyBackbone())
    return results


def assert_same(out: Path, other: Path) -> None:
    """Assert equal weights, losses, metrics and probabilities of two runs, and that every photo is scored once."""
    weights, expected = (load_file(path / "bundle" / "weights.safetensors") for path in (out, other))
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5)
    lines, expected_lines = read_log(out / "log.jsonl"), read_log(other / "log.jsonl")
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines]
    for line, other_line in zip(lines, expected_lines, strict=True):
        assert line["loss"] == pytest.approx(other_line["loss"], rel=1e-4)
        assert line["lr"] == other_line["lr"]
        assert line.get("metrics") == pytest.approx(other_line.get("metrics"), abs=1e-6)
    for split in ("val", "test"):
        table, expected_table = (pq.read_table(path / f"predictions-{split}.parquet") for path in (out, other))
        assert table["id"].to_pylist() == expected_table["id"].to_pylist()
        assert len(set(table["id"].to_pylist())) == 15
        for name in table.column_names[1:]:
            np.testing.assert_allclose(table[name].to_numpy(), expected_table[name].to_numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", list(METHODS))
def test_two_processes_equal_one_with_the_same_global_batch(photos, alone, tmp_path, kind):
    assert run(2, photos, tmp_path / "run", kind) == [0, 0]
    assert_same(tmp_path / "run", alone[kind].out)


def test_resume_with_another_number_of_processes(photos, alone, tmp_path):
    out = tmp_path / "run"
    assert run(2, photos, out, stop=4) == [9, 9]
    assert run(1, photos, out, stop=9) == [9]
    assert run(2, photos, out) == [0, 0]
    assert_same(out, alone["sum"].out)
