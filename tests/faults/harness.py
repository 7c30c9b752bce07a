"""Run jobs in separate processes with faults: kills, full disks, denied access, little memory, wrong clocks."""

import contextlib
import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from work import JOBS

from intclip.cli.main import run_to_exit
from intclip.studies.ablation import PRELOAD

WRONG_INPUT = 2
NOBODY = 65534
_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")

Fault = Callable[[Path], None]
"""Called in the child before the job, with the job's folder: sets up the fault."""


def child(kind: str, place: Path, inputs: Path, fault: Fault | None, told: Path) -> None:
    """Make one attempt like the command line: wrong input exits with code 2 and one line."""
    os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    if fault is not None:
        fault(place)
    run_to_exit(lambda: JOBS[kind].run(place, inputs))


class Harness:
    """Starts children from a server with all imports, so that an attempt takes a fraction of a second."""

    def __init__(self) -> None:
        self._told = Path(tempfile.mkdtemp(prefix="intclip-told-"), "told.txt")
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOAD, "toy_method", "work", "faiss", "torch"])
        imported = self._context.Process(target=time.sleep, args=(0,))  # so that the first attempt takes no longer
        imported.start()
        imported.join()

    def start(self, kind: str, place: Path, inputs: Path, fault: Fault | None = None) -> Any:
        """Start an attempt."""
        process = self._context.Process(target=child, args=(kind, place, inputs, fault, self._told))
        process.start()
        return process

    def told(self) -> str:
        """Return the last attempt's standard error."""
        return self._told.read_text(encoding="utf-8", errors="replace")

    def run(self, kind: str, place: Path, inputs: Path, fault: Fault | None = None) -> int:
        """Run an attempt; return its exit code, negative for a signal."""
        process = self.start(kind, place, inputs, fault)
        process.join(120)
        if process.exitcode is None:
            process.kill()
            raise AssertionError(f"{kind} hangs")
        return int(process.exitcode)


class AtOperation:
    """At the n-th change of a file in the job's folder, kill the process or raise a system error.

    Args:
        number: Number of the change, from 0.
        action: "kill" (SIGKILL), or the name of an error: "ENOSPC", "EACCES", "EIO".
    """

    def __init__(self, number: int, action: str) -> None:
        self.number, self.action = number, action

    def __call__(self, place: Path) -> None:
        left, prefix = self.number, str(place)

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            if event not in _EVENTS or not arguments or not str(arguments[0]).startswith(prefix):
                return
            # arguments of open: path, mode, flags
            if event == "open" and not int(arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            left -= 1
            if left >= 0:
                return
            if self.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if left == -1:
                code = getattr(errno, self.action)
                raise OSError(code, os.strerror(code), str(arguments[0]))

        sys.addaudithook(hook)


class SmallFiles:
    """Limit the size of files, as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, place: Path) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class LittleMemory:
    """Limit memory to the current amount plus some bytes.

    Uses one thread, because OpenMP aborts the process with its own message if it has no memory for another thread's
    stack.
    """

    def __init__(self, more: int) -> None:
        self.more = more

    def __call__(self, place: Path) -> None:
        torch.set_num_threads(1)
        has = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + self.more, resource.RLIM_INFINITY))


class SkewedClock:
    """Wall-clock time that jumps by years between calls."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, place: Path) -> None:
        rng, real = random.Random(self.seed), time.time

        def skewed() -> float:
            return real() + rng.uniform(-3e8, 3e8)

        time.time = skewed


class Denied:
    """A file that cannot be opened, like another user's; as user nobody, a job could not read its libraries."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self, place: Path) -> None:
        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event == "open" and str(arguments[0]) == self.path:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self.path)

        sys.addaudithook(hook)


def as_nobody(place: Path) -> None:
    """Continue as an unprivileged user."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


@contextlib.contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """Mount a disk of this size in bytes; requires root."""
    with tempfile.TemporaryDirectory(prefix="intclip-disk-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def leftovers(place: Path) -> list[str]:
    """Return temporary files of interrupted writes."""
    return [str(path) for path in place.rglob(".*.partial")] + [str(path) for path in place.rglob(".*.replaced")]


@dataclass
class Campaign:
    """Results of random kills.

    Attributes:
        kills: By signal.
        at: Kills by tenth of the undisturbed run's time.
        finished: Number of jobs that finished and were compared.
        wrong: Differences and half-written files; must be empty.
    """

    kills: Counter[str] = field(default_factory=Counter)
    at: Counter[int] = field(default_factory=Counter)
    finished: int = 0
    wrong: list[str] = field(default_factory=list)


def random_kills(harness: Harness, kind: str, inputs: Path, folder: Path, kills: int, rng: random.Random) -> Campaign:
    """Kill a job at random times, up to a number of kills; compare each finished job."""
    job, found = JOBS[kind], Campaign()
    start = time.monotonic()
    assert harness.run(kind, folder / "undisturbed", inputs) == 0
    seconds = time.monotonic() - start
    expected = job.state(folder / "undisturbed")
    number, begun = 0, False  # a kill may come before the job's folder exists
    while sum(found.kills.values()) < kills or begun:
        begun = True
        place = folder / f"killed-{number}"
        process = harness.start(kind, place, inputs)
        if sum(found.kills.values()) < kills:
            wait = rng.uniform(0, seconds)
            process.join(wait)
            if process.is_alive():
                sign = rng.choice((signal.SIGKILL, signal.SIGTERM))
                os.kill(process.pid, sign)
                process.join(60)
                if process.exitcode == -sign:  # it may have ended in between
                    found.kills[sign.name] += 1
                    found.at[min(9, int(10 * wait / seconds))] += 1
                    try:
                        job.whole(place)
                    except Exception as error:
                        found.wrong.append(f"{kind}: after a kill: {error}")
        process.join(120)
        if process.exitcode == 0:
            found.finished += 1
            if job.state(place) != expected:
                found.wrong.append(f"{kind}: {place} differs from the undisturbed run")
            number, begun = number + 1, False
    return found
