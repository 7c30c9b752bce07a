"""Cost of processing many photos, simulated from measured figures.

    python -m benchmarks.scale measure --photos FOLDER --out docs/figures/scale-measured.json
    python -m benchmarks.scale simulate --measured docs/figures/scale-measured.json --photos 1e7 --workers 64

`measure` measures bytes, and CPU seconds of one core (which depend least on other load). `simulate` assigns shards to
workers, which die at random and restart; all share the bandwidth of the photo store. Prices are arguments: set your
own.
"""

import argparse
import heapq
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

DAY = 86_400.0


@dataclass(frozen=True)
class Measured:
    """Figures of one machine and one kind of photos.

    Attributes:
        photo_bytes: Mean size of a photo's file.
        read_seconds: CPU seconds for reading, decoding and resizing a photo.
        model_seconds: CPU seconds of the model per photo.
        list_seconds: CPU seconds for listing a photo and storing its path.
        row_bytes: Size of a photo's row with its embedding.
        path_bytes: Size of a photo's entry in the list of inputs.
        index_bytes: Size of a photo in the index.
    """

    photo_bytes: float
    read_seconds: float
    model_seconds: float
    list_seconds: float
    row_bytes: float
    path_bytes: float
    index_bytes: float


@dataclass(frozen=True)
class Plan:
    """A job and its environment; all prices are in the same currency.

    Attributes:
        photos: Number of photos.
        workers: Number of single-core processes.
        shard: Photos per shard.
        gpu_photos: Photos per second of one GPU, which runs the model for `gpu_workers` workers; 0 for no GPU.
        gpu_workers: See above.
        network: Bytes per second of the store, for all workers together.
        link: Bytes per second of one worker's share of its machine's link.
        start: Seconds for a worker to load its model.
        lifetime: Mean seconds before a worker is killed; 0 for never.
        core_hour: Price per core and hour.
        gpu_hour: Price per GPU and hour.
        get_1000: Price per thousand reads from the store.
        gigabyte_month: Price per gigabyte and month of storage.
    """

    photos: int
    workers: int
    shard: int = 2048
    gpu_photos: float = 0.0
    gpu_workers: int = 8
    network: float = 10e9 / 8
    link: float = 1e9 / 8
    start: float = 30.0
    lifetime: float = DAY
    core_hour: float = 0.04
    gpu_hour: float = 2.0
    get_1000: float = 0.0004
    gigabyte_month: float = 0.023


def simulate(measured: Measured, plan: Plan, *, seed: int = 0) -> dict[str, Any]:
    """Return hours, cost, and the slowest part.

    A shard takes its photos' time in the slowest part of its worker. A worker that dies loses its shard, which returns
    to the queue, and restarts. One core lists the inputs first.
    """
    rates = part_rates(measured, plan)
    bottleneck = min(rates, key=lambda name: rates[name])
    each = rates[bottleneck] / plan.workers  # photos per second of one worker
    shards = -(-plan.photos // plan.shard)
    rng = random.Random(seed)

    def life() -> float:
        return rng.expovariate(1 / plan.lifetime) if plan.lifetime else float("inf")

    free = [(plan.start, worker) for worker in range(min(plan.workers, shards))]
    heapq.heapify(free)
    dies = {worker: life() for _, worker in free}
    left, kills, end = shards, 0, 0.0
    work = plan.shard / each
    while left:
        now, worker = heapq.heappop(free)
        if now + work > dies[worker]:
            kills += 1
            again = max(now, dies[worker]) + plan.start
            dies[worker] = again + life()
            heapq.heappush(free, (again, worker))
            continue
        left -= 1
        end = max(end, now + work)
        heapq.heappush(free, (now + work, worker))
    listing = plan.photos * measured.list_seconds
    seconds = end + listing
    gpus = -(-plan.workers // plan.gpu_workers) if plan.gpu_photos else 0
    gigabytes = plan.photos * (measured.row_bytes + measured.path_bytes) / 1e9
    money = {
        "cores": plan.workers * seconds / 3600 * plan.core_hour,
        "GPUs": gpus * seconds / 3600 * plan.gpu_hour,
        "reads": plan.photos / 1000 * plan.get_1000,
        "a month of results": gigabytes * plan.gigabyte_month,
    }
    return {
        "hours": round(seconds / 3600, 2),
        "hours of listing": round(listing / 3600, 2),
        "bottleneck": bottleneck,
        "photos_per_second": round(plan.photos / seconds),
        "core hours": round(plan.workers * seconds / 3600),
        "GPU hours": round(gpus * seconds / 3600),
        "workers killed": kills,
        "TB read": round(plan.photos * measured.photo_bytes / 1e12, 2),
        "GB of results": round(gigabytes),
        "GB of index": round(plan.photos * measured.index_bytes / 1e9),
        "money": {name: round(value, 2) for name, value in money.items()} | {"all": round(sum(money.values()), 2)},
    }


def part_rates(measured: Measured, plan: Plan) -> dict[str, float]:
    """Return photos per second of each part alone, for all workers together."""
    core = measured.read_seconds + (0.0 if plan.gpu_photos else measured.model_seconds)
    rates = {
        "cores": plan.workers / core,
        "links": plan.workers * plan.link / measured.photo_bytes,
        "store": plan.network / measured.photo_bytes,
    }
    if plan.gpu_photos:
        rates["GPUs"] = plan.gpu_photos * -(-plan.workers // plan.gpu_workers)
    return rates


def measure(folder: Path, count: int) -> Measured:
    """Measure `lite` on some of a folder's photos."""
    import numpy as np

    import intclip
    from intclip.backbones.preprocess import Preprocess
    from intclip.batch.job import INPUTS, SHARDS, JobOptions, plan_job
    from intclip.batch.references import references
    from intclip.batch.run import run_job
    from intclip.data.loading import array_batches
    from intclip.search.index import PHOTOS, VECTORS, read_index, update_index

    photos = sorted(folder.rglob("*.jpg"))[:count]
    predictor = intclip.load("lite", threads=1)
    engine, preprocess = predictor.engine(), predictor.card.preprocessing
    assert isinstance(preprocess, Preprocess)

    def cpu(function: Any) -> float:
        start = time.process_time()
        function()
        return (time.process_time() - start) / len(photos)

    batch = np.zeros((32, 3, preprocess.size, preprocess.size), dtype=np.float32)
    engine(batch)
    read = cpu(lambda: [None for _ in array_batches(photos, preprocess, 32, workers=1)])
    model = cpu(lambda: [engine(batch) for _ in range(len(photos) // 32)])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "list.txt").write_text("\n".join(map(str, photos)), encoding="utf-8")
        many = place / "many.txt"
        many.write_text("\n".join(str(photos[i % len(photos)]) for i in range(100_000)), encoding="utf-8")
        listing = cpu(lambda: sum(1 for _ in references([str(many)]))) * len(photos) / 100_000
        job = plan_job(place / "job", [str(place / "list.txt")], JobOptions(embedding=True))
        run_job(job, workers=1)
        rows = sum(path.stat().st_size for path in (place / "job" / SHARDS).iterdir())
        update_index(place / "index", [str(place / "job")], job.manifest.options)
        home = place / "index" / read_index(place / "index").generation
        return Measured(
            photo_bytes=sum(path.stat().st_size for path in photos) / len(photos),
            read_seconds=read,
            model_seconds=model,
            list_seconds=listing,
            row_bytes=rows / len(photos),
            path_bytes=(place / "job" / INPUTS).stat().st_size / len(photos),
            index_bytes=sum((home / name).stat().st_size for name in (PHOTOS, VECTORS)) / len(photos),
        )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = options.add_subparsers(dest="command", required=True)
    first = commands.add_parser("measure")
    first.add_argument("--photos", type=Path, required=True, help="folder of JPEG photos")
    first.add_argument("--count", type=int, default=512, help="how many of them")
    first.add_argument("--out", type=Path, help="write the figures here as JSON, besides printing them")
    second = commands.add_parser("simulate")
    second.add_argument("--measured", type=Path, required=True, help="what measure wrote")
    for field in fields(Measured):
        second.add_argument(f"--{field.name}", type=float, help="in place of the measured figure")
    for field in fields(Plan):
        needed = field.name in ("photos", "workers")
        second.add_argument(f"--{field.name}", type=float, required=needed, default=None if needed else field.default)
    asked = options.parse_args()
    if asked.command == "measure":
        from benchmarks.machine import write_report

        write_report(asked.out, {"measured": asdict(measure(asked.photos, asked.count))})
        return
    figures = json.loads(asked.measured.read_text(encoding="utf-8"))["measured"]
    own = {field.name: getattr(asked, field.name) for field in fields(Measured)}
    measured = Measured(**(figures | {name: value for name, value in own.items() if value is not None}))
    given = {field.name: getattr(asked, field.name) for field in fields(Plan)}
    whole = {name: int(given[name]) for name in ("photos", "workers", "shard", "gpu_workers")}
    print(json.dumps(simulate(measured, Plan(**(given | whole))), indent=1))


if __name__ == "__main__":
    main()
