"""Random kills in training, cache building, batch and indexing, and a fault at every change of a file.

    python -m benchmarks.faults [--kills 200] [--kinds train batch] [--points] [--out FILE]

Each job is killed (SIGKILL or SIGTERM) at random times and restarted. After each kill, every file with its final name
must be complete, and each job that finishes must equal an undisturbed run. `--points` adds a kill at every single
change of a file in turn. `tests/faults` has the harness, and runs a few of these.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path[:0] = [str(TESTS / room) for room in ("", "training", "inference", "faults")]


def every_point(harness: Any, kind: str, inputs: Path, folder: Path) -> dict[str, Any]:
    """Kill a new job at its first change of a file, another at its second, and so on; then finish each."""
    from harness import AtOperation
    from work import JOBS

    job = JOBS[kind]
    harness.run(kind, folder / "undisturbed", inputs)
    expected, wrong, number = job.state(folder / "undisturbed"), [], 0
    while True:
        place = folder / f"point-{number}"
        if harness.run(kind, place, inputs, AtOperation(number, "kill")) == 0:
            break
        try:
            job.whole(place)
        except Exception as error:
            wrong.append(f"half-written after {number}: {error}")
        if harness.run(kind, place, inputs) != 0 or job.state(place) != expected:
            wrong.append(f"differs after {number}")
        number += 1
    return {"points": number, "wrong": wrong}


def main() -> None:
    from harness import Harness, random_kills
    from work import JOBS, make_inputs

    from benchmarks.machine import write_report

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=200, help="in all, dealt evenly to the kinds")
    options.add_argument("--kinds", nargs="+", default=["train", "batch"], choices=list(JOBS), help="which jobs")
    options.add_argument("--points", action="store_true", help="also kill at every change of a file")
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    asked = options.parse_args()
    harness, rng = Harness(), random.Random(asked.seed)
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="intclip-faults-") as name:
        folder = Path(name)
        inputs = make_inputs(folder / "inputs")
        for number, kind in enumerate(asked.kinds):
            kills = asked.kills // len(asked.kinds) + (number < asked.kills % len(asked.kinds))
            start = time.monotonic()
            found = random_kills(harness, kind, inputs, folder / kind, kills, rng)
            report[kind] = {
                "kills": dict(found.kills),
                "kills by tenth of the run": [found.at[tenth] for tenth in range(10)],
                "jobs finished and compared": found.finished,
                "wrong": found.wrong,
            }
            if asked.points:
                report[kind]["every change of a file"] = every_point(harness, kind, inputs, folder / f"{kind}-points")
            report[kind]["seconds"] = round(time.monotonic() - start, 1)
    write_report(asked.out, report)
    if any(entry["wrong"] for entry in report.values()):
        raise SystemExit("some jobs did not come out as if undisturbed")


if __name__ == "__main__":
    main()
