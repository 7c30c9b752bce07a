"""Paired timing: candidates alternate in one process, so that other load affects them equally."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

Clock = Literal["wall", "cpu"]
"""Wall-clock seconds, or CPU seconds of this process (for a machine with other work)."""


def paired(
    candidates: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    repeats: int = 5,
    warmup: int = 1,
    clock: Clock = "wall",
) -> dict[str, Any]:
    """Time callables alternately.

    Args:
        candidates: Name to a callable that runs one unit of work.
        baseline: The candidate for speedups.
        repeats: Measured rounds.
        warmup: Unmeasured rounds before them.
        clock: See `Clock`.

    Returns:
        "seconds": name to the median of its runs; "speedup": name to the median over rounds of the baseline's time
        over its own, greater than 1 where it is faster; "runs": name to the seconds of each round.
    """
    now = time.perf_counter if clock == "wall" else time.process_time
    runs: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(warmup + repeats):
        for name, function in candidates.items():
            start = now()
            function()
            elapsed = now() - start
            if number >= warmup:
                runs[name].append(elapsed)
    ratios = {
        name: statistics.median(base / own for base, own in zip(runs[baseline], times, strict=True))
        for name, times in runs.items()
    }
    return {
        "baseline": baseline,
        "clock": clock,
        "seconds": {name: round(statistics.median(times), 6) for name, times in runs.items()},
        "speedup": {name: round(ratio, 3) for name, ratio in ratios.items()},
        "runs": {name: [round(value, 6) for value in times] for name, times in runs.items()},
    }


def peak_memory_mb() -> float | None:
    """Return the peak resident memory of this process in MB; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def median_seconds(function: Callable[[], object], *, seconds: float, warmup: int = 2, least: int = 5) -> float:
    """Return the median time of a call over some seconds and at least `least` calls."""
    for _ in range(warmup):
        function()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
