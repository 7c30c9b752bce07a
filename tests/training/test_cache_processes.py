"""A feature cache filled by two processes equals that of one, and no process waits forever if the other fails."""

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from launch import together
from toy import toy_dataset, toy_recipe

from fakes import TinyBackbone
from intclip.cli.main import run_to_exit
from intclip.data import feature_cache
from intclip.data.cache_shards import Shard
from intclip.files import atomic_directory
from intclip.training.distributed import connect
from intclip.training.experiment import build_experiment, open_inputs

PHOTOS, REST = 41, 15
SHARDS = 3 * 11 + 2 * 4  # of four photos: three views of train, the plain one of val and test
BUILD = feature_cache._build


def one_process(rank: int, photos: Path, out: Path, cache: str, fault: str = "") -> None:
    """Open the three splits; record the process's built shards, its sources, and standard error."""
    out.mkdir(parents=True, exist_ok=True)
    os.dup2(os.open(out / f"told-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if cache == "auto":
        os.environ["INTCLIP_CACHE"] = str(out / "home")
    feature_cache.SHARD_PHOTOS = 4
    built = 0

    def build(shard: Shard, *arguments: Any) -> None:
        nonlocal built
        if built == 5 and rank == 1 and fault:
            fail(fault, shard)
        BUILD(shard, *arguments)
        built += 1
        with (out / f"built-{rank}.txt").open("a") as file:
            file.write(f"{shard.folder.name}\n")

    def work() -> None:
        dataset = toy_dataset(photos, train=PHOTOS, rest=REST)
        recipe = toy_recipe("method.name=linear_probe", "augment={flip: 0.5}", "cache.views=2", f"cache.path={cache}")
        experiment = build_experiment(
            recipe, connect("cpu"), *open_inputs(recipe, dataset=dataset, backbone=TinyBackbone())
        )
        kinds = [source._read.__qualname__.partition(".")[0] for source in experiment.sources.values()]
        (out / f"sources-{rank}.txt").write_text(" ".join(kinds))

    feature_cache._build = build
    run_to_exit(work)


def fail(fault: str, shard: Shard) -> None:
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "full":
        with atomic_directory(shard.folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise ValueError("a mistake of ours")


def built(out: Path) -> list[list[str]]:
    return [path.read_text().split() for path in sorted(out.glob("built-*.txt"))]


def told(out: Path) -> list[list[str]]:
    """Return lines on standard error by process, without warnings of libraries."""
    texts = [(out / f"told-{rank}.txt").read_text() for rank in range(2)]
    return [[line for line in text.splitlines() if line.startswith("intclip: ")] for text in texts]


def content(cache: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(cache)): path for path in cache.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".partial" not in name}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cached") / "photos"
    toy_dataset(folder, train=PHOTOS, rest=REST)
    return folder


@pytest.fixture(scope="module")
def alone(photos) -> Path:
    """Return the folder of a run by one process, and its cache."""
    out = photos.parent / "alone"
    assert together(1, one_process, photos, out, str(out / "cache")) == [0]
    assert [len(names) for names in built(out)] == [SHARDS]
    return out


def test_two_processes_leave_the_bytes_of_one_and_each_computes_half(photos, alone, tmp_path):
    assert together(2, one_process, photos, tmp_path, str(tmp_path / "cache")) == [0, 0]
    assert content(tmp_path / "cache") == content(alone / "cache")
    first, second = built(tmp_path)
    assert sorted(first + second) == sorted(built(alone)[0])  # no duplicates
    assert abs(len(first) - len(second)) <= 3  # the last shard of each of three splits


def test_one_is_killed_the_other_tells_it_and_the_next_run_goes_on(photos, alone, tmp_path):
    first, cache = tmp_path / "first", tmp_path / "cache"
    assert together(2, one_process, photos, first, str(cache), "kill") == [2, -signal.SIGKILL]
    (line,) = told(first)[0]
    assert "another process of this run has ended" in line
    done = [name for names in built(first) for name in names]
    assert 5 < len(done) < SHARDS
    again = tmp_path / "again"
    assert together(2, one_process, photos, again, str(cache)) == [0, 0]
    later = [name for names in built(again) for name in names]
    assert sorted(done + later) == sorted(built(alone)[0])  # nothing is computed again
    assert content(cache) == content(alone / "cache")


def test_a_full_disk_of_one_is_told_by_both(photos, tmp_path):
    assert together(2, one_process, photos, tmp_path, str(tmp_path / "cache"), "full") == [2, 2]
    first, second = told(tmp_path)
    assert first == second
    assert len(first) == 1
    assert "No space left on device" in first[0]


def test_a_full_disk_of_one_sends_both_to_the_photos_where_the_cache_is_auto(photos, tmp_path):
    assert together(2, one_process, photos, tmp_path, "auto", "full") == [0, 0]
    for rank in range(2):
        assert (tmp_path / f"sources-{rank}.txt").read_text() == " ".join(3 * ["pixel_reader"])


def test_a_mistake_in_one_is_named_by_the_other(photos, tmp_path):
    assert together(2, one_process, photos, tmp_path, str(tmp_path / "cache"), "mistake") == [2, 1]
    assert told(tmp_path)[0] == ["intclip: process 1 failed: ValueError: a mistake of ours"]
