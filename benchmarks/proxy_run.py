"""A whole training run on the proxy intents with lite, one seed: minutes and mAP by number of epochs.

    INTCLIP_DATA=/data python -m benchmarks.proxy_run --out docs/figures/proxy_run.json

`$INTCLIP_DATA/flickr8k` is the proxy dataset. The first run also fills the feature cache for the others, so its time is
reported separately. "epochs needed" is the smallest number within 0.5 mAP (test) of the longest run.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write_report
from intclip.training.recipe import load_recipe
from intclip.training.run import train

NEAR = 0.005


def run(folder: Path, root: Path, epochs: int, limit: int | None) -> dict[str, Any]:
    """Train once; return total seconds (loading, cache, training, scoring) and the test figures."""
    overrides = [f"data.root={root}", f"schedule.epochs={epochs}", f"cache.path={folder / 'cache'}", "train.seed=0"]
    if limit is not None:
        overrides.append(f"data.limit={limit}")
    start = time.perf_counter()
    result = train(load_recipe("proxy-lite", overrides), folder / f"epochs-{epochs}", progress=False)
    seconds = round(time.perf_counter() - start, 1)
    return {"epochs": epochs, "seconds": seconds, "mAP": result.headline("test")["mAP"]}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    options.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 5, 8, 12], help="lengths of the runs")
    options.add_argument("--limit", type=int, help="photos of every split, for a quick try")
    arguments = options.parse_args()
    root = Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k")
    with tempfile.TemporaryDirectory() as name:
        first = run(Path(name), root, 1, arguments.limit)
        runs = [run(Path(name), root, epochs, arguments.limit) for epochs in sorted(arguments.epochs)]
    needed = next(each for each in runs if each["mAP"] >= runs[-1]["mAP"] - NEAR)
    filling = round(first["seconds"] - runs[0]["seconds"], 1) if runs[0]["epochs"] == 1 else None
    write_report(
        arguments.out,
        {
            "recipe": "proxy-lite, seed 0",
            "runs": runs,
            "seconds of filling the cache": filling,
            "epochs needed": needed["epochs"],
            "minutes needed, cache filled": round(needed["seconds"] / 60, 2),
        },
    )


if __name__ == "__main__":
    main()
