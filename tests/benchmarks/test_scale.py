"""The simulation of `benchmarks/scale.py` in cases with known results."""

import pytest
from benchmarks.scale import Measured, Plan, part_rates, simulate

ONE = Measured(
    photo_bytes=1e5, read_seconds=0.004, model_seconds=0.016, list_seconds=1e-6, row_bytes=1000, path_bytes=20,
    index_bytes=900,
)  # fmt: skip


def test_without_deaths_it_is_a_division():
    plan = Plan(photos=2048 * 100, workers=10, lifetime=0, start=7.0, core_hour=3.6)
    told = simulate(ONE, plan)
    seconds = 7.0 + 10 * 2048 * 0.02 + 2048 * 100 * 1e-6
    assert told["hours"] == pytest.approx(seconds / 3600, abs=0.006)
    assert told["bottleneck"] == "cores"
    assert told["money"]["cores"] == pytest.approx(10 * seconds * 3.6 / 3600, abs=0.01)
    assert (told["workers killed"], told["GB of results"]) == (0, 0)


def test_the_bottleneck_moves_from_cores_to_the_store_and_to_gpus():
    few, many = (Plan(photos=10**6, workers=workers, network=1e9) for workers in (64, 1024))
    assert simulate(ONE, few)["bottleneck"] == "cores"
    assert simulate(ONE, many)["bottleneck"] == "store"
    assert part_rates(ONE, many)["store"] == pytest.approx(10_000)
    with_gpu = Plan(photos=10**6, workers=8, gpu_photos=1000, gpu_workers=8)
    assert simulate(ONE, with_gpu)["bottleneck"] == "GPUs"
    assert part_rates(ONE, with_gpu)["cores"] == pytest.approx(8 / 0.004)


def test_deaths_cost_about_what_they_lose():
    """A worker that dies loses half a shard on average, plus its start-up."""
    work, start, lifetime = 2048 * 0.02, 20.0, 500.0
    calm = simulate(ONE, Plan(photos=2048 * 4000, workers=20, lifetime=0, start=start))
    told = simulate(ONE, Plan(photos=2048 * 4000, workers=20, lifetime=lifetime, start=start))
    assert told["workers killed"] == pytest.approx(told["core hours"] * 3600 / lifetime, rel=0.15)
    lost = told["workers killed"] * (work / 2 + start) / 3600
    assert told["core hours"] - calm["core hours"] == pytest.approx(lost, rel=0.3)
