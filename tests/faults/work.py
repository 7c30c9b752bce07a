"""Jobs for fault injection: tiny runs of training, cache building, batch and indexing, each resumable.

Every job is a function of a place (its folder) and existing inputs; called again after a fault, it resumes. `state` is
its result, without times, for comparison with an undisturbed run; `whole` raises if something in the folder is
half-written.
"""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from toy import CLASSES, toy_recipe

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones import registry
from intclip.batch.check import verify_job
from intclip.batch.job import MANIFEST, JobOptions, ModelOptions, plan_job, read_job
from intclip.batch.run import run_job
from intclip.batch.shards import read_info, read_shard
from intclip.data import feature_cache
from intclip.data.cache_shards import CacheFolder, Shard, is_whole
from intclip.data.feature_cache import cache_key
from intclip.data.sample import Dataset, Sample
from intclip.search.index import INDEX, update_index
from intclip.search.query import PhotoIndex
from intclip.training.checkpoint import load_checkpoint
from intclip.training.frozen import FrozenFeatures
from intclip.training.logbook import read_log
from intclip.training.run import train
from tiny_models import write_bundle

PHOTOS = 36
TIMES = ("seconds", "seconds_left", "images_per_second")
RECIPE = (
    "method.name=toy_method",
    "augment={flip: 0.5}",
    "schedule.epochs=3",
    "optim.ema=0.9",
    "train.checkpoint_every=2",
    "train.accumulate=2",
    "train.batch_size=4",
)


@dataclass(frozen=True)
class Job:
    """A kind of job.

    Attributes:
        run: Run or resume the job in a folder, with the inputs in another.
        state: Result of a finished job, for comparison.
        whole: Raise if a file with its final name is damaged.
    """

    run: Callable[[Path, Path], None]
    state: Callable[[Path], Any]
    whole: Callable[[Path], None]


def make_inputs(folder: Path) -> Path:
    """Make photos, a list of them with a bad one, and a model."""
    (folder / "photos").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = []
    for number in range(PHOTOS):
        pixels = np.clip(60 + 140 * targets(number) + rng.normal(0, 8, (30, 30, 3)), 0, 255).astype(np.uint8)
        names.append(f"photos/{number:03d}.png")
        Image.fromarray(pixels).save(folder / names[-1])
    (folder / "list.txt").write_text("\n".join([*names, "photos/gone.png", names[3]]), encoding="utf-8")
    write_bundle(folder / "model")
    return folder


def targets(number: int) -> np.ndarray:
    return (np.array([number & 1, number >> 1 & 1, number >> 2 & 1]) > 0).astype(np.float32)


def samples(inputs: Path) -> list[Sample]:
    return [
        Sample(f"{number:03d}", targets(number), inputs / "photos" / f"{number:03d}.png") for number in range(PHOTOS)
    ]


def run_train(place: Path, inputs: Path) -> None:
    found = samples(inputs)
    splits = {"train": found[:20], "val": found[20:28], "test": found[28:]}
    dataset = Dataset("toy", tiny_taxonomy(CLASSES), "multilabel", splits)
    train(toy_recipe(*RECIPE), place, resume=True, dataset=dataset, backbone=TinyBackbone(), progress=False)


def train_state(place: Path) -> Any:
    files = {str(path.relative_to(place)): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}
    metrics = json.loads(files.pop("metrics.json"))
    metrics.pop("seconds")
    metrics.pop("cost")
    files.pop("log.jsonl")
    log = [{key: value for key, value in line.items() if key not in TIMES} for line in read_log(place / "log.jsonl")]
    return files, metrics, log


def train_whole(place: Path) -> None:
    load_checkpoint(place)
    if (place / "metrics.json").exists():
        json.loads((place / "metrics.json").read_text())


def run_cache(place: Path, inputs: Path) -> None:
    feature_cache.SHARD_BYTES = 2000  # some shards of a few photos
    backbone = TinyBackbone()
    extract = FrozenFeatures(backbone, ("pooled", "regions"), device=torch.device("cpu"), engine="torch").arrays
    key = cache_key(backbone, ("pooled", "regions"), dtype="float16")
    gone = replace(samples(inputs)[0], id="gone", image=inputs / "photos" / "gone.png")
    feature_cache.open_or_build(
        CacheFolder(place, progress=False), [*samples(inputs), gone], key, extract, batch_size=4
    )


def cache_state(place: Path) -> Any:
    """Return all but the remains of killed builds, which stay for an hour, for other processes."""
    files = {str(path.relative_to(place)): path for path in sorted(place.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if ".partial" not in name}


def cache_whole(place: Path) -> None:
    for manifest in place.rglob("shard.json"):
        if not manifest.parent.name.startswith("."):
            assert is_whole(Shard(manifest.parent, 0, 0, 0), checksums=True), f"{manifest.parent} is half-written"


def model(inputs: Path) -> ModelOptions:
    registry.BUILDERS["tiny"] = lambda name, checkpoint, split: TinyBackbone()
    return ModelOptions(spec=str(inputs / "model"), engine="torch")


def run_batch(place: Path, inputs: Path) -> None:
    options = JobOptions(model=model(inputs), embedding=True, dedupe="content", shard_size=5, batch_size=4)
    run_job(plan_job(place, [str(inputs / "list.txt")], options), workers=1)


def batch_state(place: Path) -> Any:
    job = read_job(place)
    verify_job(job)
    rows = pq.read_table(place / "shards").to_pylist()
    names = {str(path.relative_to(place)) for path in place.rglob("*")}
    return rows, names, (place / MANIFEST).read_bytes(), (place / "duplicates.parquet").read_bytes()


def batch_whole(place: Path) -> None:
    if (place / MANIFEST).exists():
        job = read_job(place)
        for number in range(len(job.manifest.shards)):
            job.inputs(number)
    for path in place.glob("shards/part-*.parquet"):
        assert read_info(path) is not None, f"{path} is half-written"
        read_shard(path)


def run_index(place: Path, inputs: Path) -> None:
    update_index(place, [str(inputs / "photos")], JobOptions(model=model(inputs)), run=partial(run_job, workers=1))


def index_state(place: Path) -> Any:
    index = PhotoIndex(place)
    hits = index.by_intent("class 1", top=100)
    info = index.info.model_dump(exclude={"generation"})
    with contextlib.closing(pq.ParquetFile(place / index.info.generation / "photos.parquet")) as file:
        embeddings = sorted(map(str, file.read(columns=["path", "embedding"]).to_pylist()))
    left = {path.name for path in place.iterdir()} - {index.info.generation}
    return info, sorted((hit.path, hit.score) for hit in hits), embeddings, left


def index_whole(place: Path) -> None:
    if (place / INDEX).exists():
        index_state(place)


JOBS: dict[str, Job] = {
    "train": Job(run_train, train_state, train_whole),
    "cache": Job(run_cache, cache_state, cache_whole),
    "batch": Job(run_batch, batch_state, batch_whole),
    "index": Job(run_index, index_state, index_whole),
}
