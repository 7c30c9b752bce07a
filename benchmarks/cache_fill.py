"""Seconds until an empty feature cache is full, by one process or by several, each on a core of its own.

    INTCLIP_DATA=/data python -m benchmarks.cache_fill
    INTCLIP_DATA=/data torchrun --nproc-per-node 2 -m benchmarks.cache_fill

`$INTCLIP_DATA/flickr8k` is the proxy dataset, the recipe `proxy-lite` on its first photos: a plain view of all, two
augmented ones of the training photos. Loading the model is not counted; making its engine is, in every process.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.machine import write_report
from intclip.backbones import load_backbone
from intclip.data.registry import load_dataset
from intclip.training.distributed import connect
from intclip.training.experiment import build_experiment
from intclip.training.recipe import load_recipe


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--limit", type=int, default=1024, help="photos of every split")
    options.add_argument("--out", type=Path, help="write the report here as JSON, besides printing it")
    asked = options.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(os.environ.get("LOCAL_RANK", "0")) % len(cores)]})
    processes = connect("cpu")
    folder = Path(processes.gather(tempfile.mkdtemp(prefix="intclip-cache-") if processes.is_main else "")[0])
    overrides = [f"cache.path={folder}", f"data.limit={asked.limit}", "data.test=null", "method.name=linear_probe"]
    recipe = load_recipe("proxy-lite", [*overrides, "method.options={}", "train.device=cpu"])
    dataset = load_dataset("proxy-intents", Path(os.environ.get("INTCLIP_DATA", "."), "flickr8k"))
    backbone = load_backbone("lite")
    processes.wait()
    start = time.perf_counter()
    experiment = build_experiment(recipe, processes, dataset=dataset, backbone=backbone)
    seconds = time.perf_counter() - start
    if processes.is_main:
        photos = {split: len(source.ids) for split, source in experiment.sources.items()}
        views = photos["val"] + (1 + recipe.cache.views) * photos["train"]
        shards = len(list(folder.rglob("shard.json")))
        told = {"processes": processes.world, "photo views": views, "shards": shards, "seconds": round(seconds, 1)}
        write_report(asked.out, told)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
