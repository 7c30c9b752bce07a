"""Batch jobs by one process and by Ray: equal rows after kills, and photos per second of both.

    python -m benchmarks.batch --photos FOLDER [--references 50000] [--workers 2] [--kills 3] [--out FILE]

A folder's photos are listed repeatedly until there are enough references. Each job is killed (SIGKILL) and resumed; in
the Ray job, workers are killed too. Then both are verified, and their rows compared. Rates are those of the resumed
runs, from the time when every worker has finished a shard, so they exclude start-up. CPU time per photo, of all
processes, is reported too, because it depends less on other load. The local job uses all cores: set as many workers.
The model is a small CLIP with random weights, so that decoding and the job's own work dominate.
"""

import argparse
import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import write_report
from intclip.backbones.architecture import Architecture
from intclip.backbones.clip import random_clip
from intclip.batch.check import read_status, verify_job
from intclip.batch.job import read_job
from intclip.batch.mapper import done_shard
from intclip.batch.shards import read_shard, to_matrix
from intclip.inference.export import build_graph, make_card
from intclip.labels import load_taxonomy
from intclip.methods.registry import build_method

SMALL = Architecture(
    embed_dim=64, image_size=96, vision_layers=2, vision_width=64, patch_size=16, text_width=64, text_layers=1
)


def write_model(path: Path) -> Path:
    """Export a zero-shot model with random weights."""
    method = build_method("zero_shot", random_clip(SMALL, name="small"), load_taxonomy("intentonomy"), {})
    card = make_card(method, model="small", thresholds=0.5)
    return build_graph(method, card, "openvino", maps=False).export(path, maps=False)


def write_list(folder: Path, path: Path, count: int) -> None:
    """Write a list of `count` references to a folder's photos; one in a thousand is to a missing photo."""
    photos = sorted(str(file.absolute()) for file in folder.rglob("*.jpg"))
    names = (photos[i % len(photos)] if i % 1000 != 500 else f"/gone/{i}.jpg" for i in range(count))
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


class Run:
    """A batch command in its own process.

    Args:
        listing: File of references.
        out: The job's folder.
        arguments: Additional arguments.
    """

    def __init__(self, listing: Path, out: Path, *arguments: str) -> None:
        self.out, self.start = out, time.time()
        command = [sys.executable, "-m", "intclip.cli", "batch", str(listing), "--out", str(out), *arguments]
        self.process = psutil.Popen([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._cpu: dict[int, float] = {}

    def watch(self) -> int:
        """Return the number of shards; also updates CPU seconds."""
        for process in self.family():
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
            except psutil.Error:
                continue
        return len(list((self.out / "shards").glob("part-*.parquet")))

    def family(self) -> list[psutil.Process]:
        """Return the process and its descendants."""
        try:
            return [self.process, *self.process.children(recursive=True)]
        except psutil.Error:
            return []

    def kill(self) -> None:
        """Kill the command with SIGKILL; its children have some seconds to notice."""
        orphans = self.family()[1:]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for orphan in psutil.wait_procs(orphans, timeout=20)[1]:
            with contextlib.suppress(psutil.Error):
                orphan.kill()

    @property
    def cpu_seconds(self) -> float:
        """Return CPU seconds of all processes seen so far."""
        return sum(self._cpu.values())


def undisturbed(run: Run, lanes: int) -> dict[str, Any]:
    """Wait for a run to end; return its rates.

    Args:
        run: Just started.
        lanes: Number of parallel shards; the first ones, as many, are excluded from the rate.
    """
    first_cpu = None
    while run.process.poll() is None:
        run.watch()
        if first_cpu is None and finished_since(run.out, run.start):
            first_cpu = (run.cpu_seconds, len(finished_since(run.out, run.start)))
        time.sleep(1)
    if run.process.returncode != 0:
        raise SystemExit(f"the run over {run.out} failed")
    told = json.loads(run.process.communicate()[0])
    shards = sorted(finished_since(run.out, run.start))
    rows = sum(count for _, count in shards[lanes:])
    seconds = shards[-1][0] - shards[lanes - 1][0]
    cpu, before = first_cpu or (0.0, 0)
    later = sum(count for _, count in shards[before:])
    return {
        "photos": told["computed"],
        "seconds": round(told["seconds"], 1),
        "seconds_to_first_shard": round(shards[0][0] - run.start, 1),
        "photos_per_second": round(rows / seconds, 1),
        "cpu_ms_a_photo": round(1e3 * (run.cpu_seconds - cpu) / max(later, 1), 2),
    }


def finished_since(out: Path, start: float) -> list[tuple[float, int]]:
    """Return when shards were finished, and their rows."""
    try:
        job = read_job(out)
    except Exception:
        return []
    infos = [done_shard(job, number) for number in range(len(job.manifest.shards))]
    return [(info.finished, info.rows) for info in infos if info is not None and info.finished >= start]


def wait_for(run: Run, shards: int) -> None:
    """Wait for a number of shards."""
    while run.watch() < shards:
        if run.process.poll() is not None:
            raise SystemExit(f"the run over {run.out} ended early")
        time.sleep(0.2)


def kill_worker(run: Run) -> bool:
    """Kill one of Ray's mapper workers with SIGKILL."""
    workers = [process for process in run.family() if "RayWorker" in " ".join(_title(process))]
    if workers:
        random.choice(workers).send_signal(signal.SIGKILL)
    return bool(workers)


def _title(process: psutil.Process) -> list[str]:
    try:
        command: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return command


def left_by(out: Path) -> dict[str, Any]:
    """Return what a killed job had completed."""
    status = read_status(out)
    return {key: status[key] for key in ("state", "done", "shards_done", "errors")}


def compare(left: Path, right: Path) -> dict[str, Any]:
    """Compare the rows of two jobs on the same inputs."""
    jobs = read_job(left), read_job(right)
    equal, widest, rows = True, 0.0, 0
    for number in range(len(jobs[0].manifest.shards)):
        tables = [read_shard(job.shard_path(number)) for job in jobs]
        plain = ["row", "path", "labels", "error"]
        equal = equal and tables[0].select(plain).equals(tables[1].select(plain))
        values = [to_matrix(table["probabilities"]) for table in tables]
        gap = abs(values[0] - values[1])
        widest = max(widest, float(gap[gap == gap].max(initial=0)))
        rows += len(tables[0])
    return {"rows": rows, "paths, labels and errors equal": equal, "widest gap of a probability": widest}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    options.add_argument("--references", type=int, default=50_000, help="length of the list")
    options.add_argument("--workers", type=int, default=2, help="Ray's workers, and the local job's reading threads")
    options.add_argument("--kills", type=int, default=3, help="of Ray's workers")
    options.add_argument("--shard-size", type=int, default=1000, help="photos in a shard")
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    asked = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="intclip-batch-"))
    model, listing = write_model(folder / "small.xml"), folder / "list.txt"
    write_list(asked.photos, listing, asked.references)
    shards = -(-asked.references // asked.shard_size)
    common = ["--model", str(model), "--shard-size", str(asked.shard_size), "--workers", str(asked.workers)]
    report: dict[str, Any] = {"references": asked.references, "shards": shards, "workers": asked.workers}

    run = Run(listing, folder / "local", *common)
    wait_for(run, shards // 3)
    run.kill()
    report["local, after the kill"] = left_by(folder / "local")
    report["local, resumed"] = undisturbed(Run(listing, folder / "local", *common), 1)

    ray = [*common, "--engine", "ray"]
    run = Run(listing, folder / "ray", *ray)
    killed = 0
    for number in range(asked.kills):
        wait_for(run, 1 + (number * shards) // (3 * asked.kills))
        killed += kill_worker(run)
    wait_for(run, shards // 3)
    run.kill()
    report["ray, workers killed"] = killed
    report["ray, after the kill"] = left_by(folder / "ray")
    report["ray, resumed"] = undisturbed(Run(listing, folder / "ray", *ray), asked.workers)

    for name in ("local", "ray"):
        report[f"{name}, verified"] = vars(verify_job(read_job(folder / name)))
    report["compared"] = compare(folder / "local", folder / "ray")
    local, other = report["local, resumed"], report["ray, resumed"]
    report["ray over local"] = {
        "photos_per_second": round(other["photos_per_second"] / local["photos_per_second"], 3),
        "by cpu time a photo": round(local["cpu_ms_a_photo"] / other["cpu_ms_a_photo"], 3),
    }
    write_report(asked.out, report)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
