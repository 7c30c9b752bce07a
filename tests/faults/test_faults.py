"""After any fault: nothing half-written, one clear error line, and resuming gives the undisturbed result."""

import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from harness import (
    WRONG_INPUT,
    AtOperation,
    Denied,
    Harness,
    LittleMemory,
    SkewedClock,
    SmallFiles,
    as_nobody,
    leftovers,
    random_kills,
    small_disk,
)
from work import JOBS, make_inputs

from fakes import TinyBackbone
from intclip.backbones import registry
from intclip.batch.job import read_job
from intclip.batch.run import run_job
from intclip.files import write_text

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and limits of POSIX")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
KINDS = list(JOBS)
LINKER = 127
"""Exit code of the dynamic linker without memory to bind a function; our code cannot report this."""


@pytest.fixture(scope="module")
def harness() -> Harness:
    return Harness()


@pytest.fixture(scope="module")
def home():
    """A folder that every user can read."""
    with tempfile.TemporaryDirectory(prefix="intclip-faults-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def inputs(home) -> Path:
    return make_inputs(home / "inputs")


@pytest.fixture(scope="module")
def undisturbed(harness, home, inputs):
    """State of each kind of undisturbed job."""
    states = {}
    for kind, job in JOBS.items():
        assert harness.run(kind, home / "undisturbed" / kind, inputs) == 0
        states[kind] = job.state(home / "undisturbed" / kind)
    return states


@pytest.mark.parametrize("kind", KINDS)
def test_random_kills(harness, inputs, tmp_path, kind):
    found = random_kills(harness, kind, inputs, tmp_path, kills=3, rng=random.Random(5))
    assert found.wrong == []
    assert sum(found.kills.values()) == 3
    assert found.finished >= 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("action", ["kill", "ENOSPC", "EIO"])
def test_a_fault_at_any_change_of_a_file(harness, inputs, undisturbed, tmp_path, kind, action):
    """Some of the points between two file operations; `benchmarks/faults.py` tries all."""
    job, place = JOBS[kind], tmp_path / "job"
    hit = 0
    for number in (0, 2, 5, 11):
        code = harness.run(kind, place, inputs, AtOperation(number, action))
        job.whole(place)
        hit += code != 0
        # A failed cleanup or an unwritable cache may be ignored; everything else must be reported.
        assert code in ((-9, 0) if action == "kill" else (WRONG_INPUT, 0)), code
    assert hit >= 1
    assert harness.run(kind, place, inputs) == 0
    assert job.state(place) == undisturbed[kind]
    if action != "kill":
        assert leftovers(place) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_told_and_leaves_nothing_half(harness, inputs, undisturbed, tmp_path, kind):
    job, place = JOBS[kind], tmp_path / "job"
    code = harness.run(kind, place, inputs, SmallFiles(700))
    told = harness.told()
    assert code == WRONG_INPUT
    assert "intclip: " in told
    assert "Traceback" not in told
    job.whole(place)
    assert leftovers(place) == []
    assert harness.run(kind, place, inputs) == 0
    assert job.state(place) == undisturbed[kind]


@pytest.mark.skipif(not ROOT, reason="only root may mount a small disk")
@pytest.mark.parametrize("kind", ["train", "batch"])
def test_a_disk_that_fills_up(harness, inputs, undisturbed, kind):
    job = JOBS[kind]
    try:
        disk = small_disk(64 * 1024)
        folder = disk.__enter__()
    except Exception as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes(40 * 1024))
        code = harness.run(kind, folder / "job", inputs)
        told = harness.told()
        assert code == WRONG_INPUT
        assert "No space left on device" in told
        job.whole(folder / "job")
        filler.unlink()
        shutil.move(folder / "job", (moved := Path(tempfile.mkdtemp())) / "job")
        assert harness.run(kind, moved / "job", inputs) == 0
        assert job.state(moved / "job") == undisturbed[kind]
        shutil.rmtree(moved)
    finally:
        disk.__exit__(None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_denied_permission_is_one_line(harness, home, inputs, undisturbed, kind):
    place = home / f"denied-{kind}" / "job"
    place.parent.mkdir()
    place.parent.chmod(0o555)
    assert harness.run(kind, place, inputs, as_nobody) == WRONG_INPUT
    told = harness.told().splitlines()
    assert len(told) == 1
    assert told[0].startswith("intclip: ")
    assert "Permission denied" in told[0]
    place.parent.chmod(0o755)
    assert harness.run(kind, place, inputs) == 0
    assert JOBS[kind].state(place) == undisturbed[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_earlier_attempt_left_and_may_not_be_read_is_one_line(harness, home, inputs, undisturbed, kind):
    place = home / f"closed-{kind}" / "job"
    harness.run(kind, place, inputs, AtOperation(9, "kill"))
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    modes = {path: path.stat().st_mode for path in (place, *place.rglob("*"))}
    for path in modes:
        path.chmod(0o000 if path.is_file() else 0o555)
    assert harness.run(kind, place, inputs, as_nobody) == WRONG_INPUT
    assert re.fullmatch(rf"intclip: [^\n]*{re.escape(str(place))}[^\n]*: Permission denied;[^\n]*\n", harness.told())
    for path, mode in modes.items():
        path.chmod(mode)
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before
    assert harness.run(kind, place, inputs) == 0
    assert JOBS[kind].state(place) == undisturbed[kind]


def test_a_photo_that_may_not_be_read_is_a_row_until_it_may(harness, inputs, undisturbed, tmp_path, monkeypatch):
    place = tmp_path / "job"
    assert harness.run("batch", place, inputs, Denied(inputs / "photos" / "007.png")) == 0
    rows = JOBS["batch"].state(place)[0]
    assert "Permission denied" in rows[7]["error"]
    monkeypatch.setitem(registry.BUILDERS, "tiny", lambda name, checkpoint, split: TinyBackbone())
    run_job(read_job(place), workers=1, retry_errors=True)
    assert JOBS["batch"].state(place) == undisturbed["batch"]


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
@pytest.mark.parametrize("kind", KINDS)
def test_too_little_memory_ends_it_and_loses_nothing(harness, inputs, undisturbed, tmp_path, kind):
    job, place = JOBS[kind], tmp_path / "job"
    codes = []
    for megabytes in (2, 7):
        process = harness.start(kind, place, inputs, LittleMemory(megabytes << 20))
        process.join(20)
        if process.is_alive():  # Python waits forever for a thread that could not start for lack of memory
            process.kill()
            process.join()
        codes.append(process.exitcode)
        job.whole(place)
        if process.exitcode > 0 and process.exitcode != LINKER:
            told = harness.told()
            assert process.exitcode == WRONG_INPUT, told
            assert "intclip: out of memory; " in told
            assert "Traceback" not in told
    assert any(codes)
    assert harness.run(kind, place, inputs) == 0
    assert job.state(place) == undisturbed[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_clock_that_jumps(harness, inputs, undisturbed, tmp_path, kind):
    place = tmp_path / "job"
    harness.run(kind, place, inputs, AtOperation(9, "kill"))
    for number, path in enumerate(sorted(place.rglob("*"))):
        os.utime(path, 2 * ((4e9, 0)[number % 2],))  # written in 2096, or in 1970
    assert harness.run(kind, place, inputs, SkewedClock(1)) == 0
    assert JOBS[kind].state(place) == undisturbed[kind]


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0x10
    path.write_bytes(content)


def test_a_damaged_cache_shard_is_computed_again(harness, inputs, undisturbed, tmp_path):
    place = tmp_path / "job"
    assert harness.run("cache", place, inputs) == 0
    files = sorted(place.rglob("regions.npy"))
    flip(files[0])
    files[1].unlink()
    files[2].write_bytes(files[2].read_bytes()[:50])
    (files[3].parent / "shard.json").write_text("{")
    assert harness.run("cache", place, inputs) == 0
    assert JOBS["cache"].state(place) == undisturbed["cache"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(harness, inputs, undisturbed, tmp_path):
    place = tmp_path / "job"
    for number in range(10, 100, 3):
        assert harness.run("train", place, inputs, AtOperation(number, "kill")) == -9
        if (place / "checkpoint-previous.safetensors").exists():
            break
    flip(place / "checkpoint.safetensors", 0.9)
    assert harness.run("train", place, inputs) == 0
    assert JOBS["train"].state(place) == undisturbed["train"]


def test_a_damaged_shard_of_a_batch_job_is_done_again(harness, inputs, undisturbed, tmp_path):
    place = tmp_path / "job"
    assert harness.run("batch", place, inputs) == 0
    shards = sorted(place.glob("shards/*.parquet"))
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    shards[1].write_bytes(b"")
    shards[2].write_bytes(shards[3].read_bytes())  # whole, but another's
    assert harness.run("batch", place, inputs) == 0
    assert JOBS["batch"].state(place) == undisturbed["batch"]


def test_a_damaged_input_is_a_row_or_a_count_and_never_the_end(harness, tmp_path):
    broken = make_inputs(tmp_path / "inputs")
    for number in (0, 21, 30):
        path = broken / "photos" / f"{number:03d}.png"
        path.write_bytes(path.read_bytes()[:60])
    write_text(broken / "photos" / "005.png", "no photo")
    for kind in KINDS:
        assert harness.run(kind, tmp_path / kind, broken) == 0, kind
    rows = JOBS["batch"].state(tmp_path / "batch")[0]
    assert [row["row"] for row in rows if row["error"]] == [0, 5, 21, 30, 36]
    metrics = JOBS["train"].state(tmp_path / "train")[1]
    assert [metrics["splits"][split]["unreadable"] for split in ("val", "test")] == [1, 1]
