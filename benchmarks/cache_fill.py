"""CPU seconds to fill a feature cache, with one process or several, each on its own core.

    INTCLIP_DATA=/data python -m benchmarks.cache_fill
    INTCLIP_DATA=/data torchrun --nproc-per-node 2 -m benchmarks.cache_fill

`$INTCLIP_DATA/flickr8k` is the proxy dataset, with the recipe `proxy-lite` on its first photos: a plain view of all
photos, and two augmented views of the training photos. The CPU seconds of the busiest process are the time needed on
otherwise idle cores. Each process creates an engine, at a fixed cost: a cache of two photos per split is filled first,
and its seconds are subtracted.
"""

import argparse
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

from benchmarks.machine import write_report
from intclip.backbones import load_backbone
from intclip.data import feature_cache
from intclip.data.registry import load_dataset
from intclip.training.distributed import Processes, connect
from intclip.training.experiment import build_experiment, open_inputs
from intclip.training.recipe import load_recipe


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limit", type=int, default=256, help="photos of every split")
    options.add_argument("--shard", type=int, default=32, help="photos in a shard")
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    asked = options.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0")) % len(cores)]})
    processes = connect("cpu")
    with mock.patch.object(feature_cache, "SHARD_PHOTOS", asked.shard):
        engine, _ = fill(processes, 2)
        cpu, report = fill(processes, asked.limit)
    if processes.is_main:
        took = {"CPU seconds of the busiest": round(cpu - engine, 1), "to make its engine": round(engine, 1)}
        write_report(asked.out, {"processes": processes.world} | report | took)


def fill(processes: Processes, limit: int) -> tuple[float, dict[str, int]]:
    """Fill a cache and remove it; return the busiest process's CPU seconds, and what was computed."""
    folder = Path(processes.gather(tempfile.mkdtemp(prefix="intclip-cache-") if processes.is_main else "")[0])
    overrides = [f"cache.path={folder}", "data.test=null", "method.name=linear_probe", "method.options={}"]
    recipe = load_recipe("proxy-lite", [*overrides, "train.device=cpu", "train.workers=1"])
    dataset = load_dataset("proxy-intents", Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k"))
    samples = dataset.splits["train"]
    dataset = replace(dataset, splits={"train": samples[:limit], "val": samples[limit : 2 * limit]})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"val": "val"})})
    backbone = load_backbone("lite")
    processes.wait()
    start = time.process_time()
    build_experiment(recipe, processes, *open_inputs(recipe, dataset=dataset, backbone=backbone))
    cpu = max(processes.gather(time.process_time() - start))
    shards = len(list(folder.rglob("shard.json")))
    processes.wait()
    if processes.is_main:
        shutil.rmtree(folder)
    return cpu, {"photo views": limit * (2 + recipe.cache.views), "shards": shards}


if __name__ == "__main__":
    main()
