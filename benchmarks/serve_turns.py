"""Services of several working trees in turns: a comparison that is robust to other load.

    python -m benchmarks.serve_turns ../before . [--turns 10] [--requests 1000] [--clients 200]

All services run throughout, and are idle while another is measured. CPU milliseconds include all threads.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.serve import Load, photos, start


def cpu_ms(pid: int) -> float:
    """Return the CPU time of a process's live threads."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", type=Path)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--side", type=int, default=500, help="longer side of the photos")
    options = parser.parse_args()
    if options.requests < (least := 3 * options.clients):
        parser.error(f"--requests is at least {least}: a turn counts while all clients are at work")
    import intclip

    files = photos(options.side)
    expected = [one.scores for one in intclip.load(options.model).predict(files)]
    services: list[tuple[Path, subprocess.Popen[bytes], Load, list[float], list[float]]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number, tree in enumerate(options.trees):
                os.environ["PYTHONPATH"] = str(tree.resolve() / "src")
                server, port = start(options.model, Path(folder) / str(number))
                services.append((tree, server, Load(port, files, expected), [], []))
            for turn in range(-1, options.turns):  # the first is a warm-up
                for _, server, load, costs, rates in services[:: -1 if turn % 2 else 1]:
                    before = cpu_ms(server.pid)
                    rate = asyncio.run(load.run(options.clients, options.requests, 0))
                    if turn >= 0:
                        costs.append((cpu_ms(server.pid) - before) / options.requests)
                        rates.append(rate)
    finally:
        for _, server, *_ in services:
            server.send_signal(signal.SIGINT)
            server.wait(120)
    report = {
        str(tree): {
            "photos_per_second": round(statistics.median(rates), 1),
            "cpu_ms_a_photo": round(statistics.median(costs), 2),
            "statuses": dict(load.statuses),
            "wrong_answers": load.wrong,
        }
        for tree, _, load, costs, rates in services
    }
    json.dump(report, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
