"""A batch job by Ray with a worker killed during a shard has the rows of an undisturbed local job."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from watched_ray import GO_ON, PID, PLACE, SHARD, WAIT
from work import PHOTOS, make_inputs, model

import intclip
from intclip.batch.check import verify_job
from intclip.batch.job import JobOptions, ModelOptions, plan_job
from intclip.batch.run import run_job

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals of POSIX"),
    pytest.mark.slow,
    pytest.mark.timeout(2 * WAIT + 60),
]
TESTS = Path(__file__).parents[1]
PLACES = [Path(intclip.__file__).parents[1], TESTS, *(TESTS / room for room in ("faults", "inference", "training"))]


@pytest.fixture
def home():
    """A folder with a short path: Ray's sockets are below it, with at most 107 characters."""
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def by_ray(source: Path, out: Path, graph: Path, home: Path, errors: int) -> subprocess.Popen[str]:
    """Start the job with its own small Ray instance."""
    environment = os.environ | {
        PLACE: str(home),
        "PYTHONPATH": os.pathsep.join(map(str, PLACES)),
        "RAY_TMPDIR": str(home),
        "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": str(80 * 10**6),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("RAY_ADDRESS", None)
    words = ["batch", source, "--out", out, "--model", graph, "--shard-size", 3, "--runner", "ray", "--workers", 2]
    command = [sys.executable, "-c", "from watched_ray import watched_main; watched_main()", *map(str, words), "--json"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
    )


def test_a_killed_worker_costs_no_row_and_makes_none_twice(home, tmp_path):
    inputs = make_inputs(tmp_path / "inputs")
    source, graph = inputs / "list.txt", inputs / "tiny.xml"
    model(inputs).load().export(graph, "openvino")
    options = JobOptions(model=ModelOptions(spec=str(graph), threads=1), shard_size=3)
    local = plan_job(tmp_path / "local", [str(source)], options)
    run_job(local, workers=1)
    with (tmp_path / "errors.txt").open("w") as errors:
        process = by_ray(source, tmp_path / "ray", graph, home, errors.fileno())
    said = (tmp_path / "errors.txt").read_text
    try:
        end = time.monotonic() + WAIT
        while not (home / PID).exists():
            assert process.poll() is None, f"Ray does not run here: {said()}"
            assert time.monotonic() < end, f"Ray does not begin: {said()}"
            time.sleep(0.05)
        victim = int((home / PID).read_text())
        assert not list((tmp_path / "ray" / "shards").glob(f"part-*{SHARD}.parquet"))
        (home / GO_ON).touch()
        os.kill(victim, signal.SIGKILL)
        told = json.loads(process.communicate(timeout=WAIT)[0])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, said()
    assert (told["photos"], told["computed"], told["errors"]) == (PHOTOS + 2, PHOTOS + 2, 1)
    job = plan_job(tmp_path / "ray", [str(source)], options)  # the same job: otherwise this would be rejected
    assert verify_job(job).photos == PHOTOS + 2
    rows, expected = (pq.read_table(made.folder / "shards").to_pylist() for made in (job, local))
    assert [row["row"] for row in rows] == list(range(PHOTOS + 2))
    assert rows == expected
