"""Time of a bootstrap of all metrics, compared with one call of scikit-learn per draw.

    python -m benchmarks.bootstrap [--photos 1216] [--classes 28] [--draws 1000] [--out FILE]

The number of photos is that of Intentonomy's test split; both use one core. scikit-learn computes four metrics (macro,
micro and samples F1, mAP; ours eleven) on some draws. Its seconds are scaled to all draws, and the intervals of these
draws are compared.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, f1_score

from benchmarks.machine import write_report
from intclip.metrics import bootstrap_intervals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1216)
    parser.add_argument("--classes", type=int, default=28)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--peer-draws", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    targets = (rng.random((options.photos, options.classes)) < 0.07).astype(np.float64)
    scores = np.clip(0.3 * targets + 0.7 * rng.random(targets.shape), 0, 1)
    seconds: dict[str, list[float]] = {"intclip": [], "scikit-learn": []}
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    for _ in range(options.turns):
        start = time.perf_counter()
        bootstrap_intervals(scores, targets, n=options.draws)
        seconds["intclip"].append(time.perf_counter() - start)
        start = time.perf_counter()
        peer = by_scikit_learn(scores, targets, options.peer_draws)
        seconds["scikit-learn"].append((time.perf_counter() - start) * options.draws / options.peer_draws)
    ours = bootstrap_intervals(scores, targets, n=options.peer_draws)
    difference = max(
        abs(bound - expected)
        for name, values in peer.items()
        for bound, expected in zip(ours[name], np.quantile(values, (0.025, 0.975)), strict=True)
    )
    ratios = [theirs / own for own, theirs in zip(seconds["intclip"], seconds["scikit-learn"], strict=True)]
    write_report(
        options.out,
        {
            "photos": options.photos,
            "classes": options.classes,
            "draws": options.draws,
            "seconds": {name: round(float(np.median(values)), 2) for name, values in seconds.items()},
            "ratio by turn": [round(ratio, 1) for ratio in ratios],
            "largest difference of a bound": difference,
        },
    )


def by_scikit_learn(scores: np.ndarray, targets: np.ndarray, draws: int) -> dict[str, list[float]]:
    """Return each metric's values by draw, on the same draws as ours."""
    found: dict[str, list[float]] = {"macro_f1": [], "micro_f1": [], "samples_f1": [], "mAP": []}
    for rows in np.random.default_rng(0).integers(0, len(scores), size=(draws, len(scores))):
        drawn, called = targets[rows], scores[rows] >= 0.5
        for average in ("macro", "micro", "samples"):
            found[f"{average}_f1"].append(f1_score(drawn, called, average=average, zero_division=0))
        found["mAP"].append(average_precision_score(drawn, scores[rows], average="macro"))
    return found


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
