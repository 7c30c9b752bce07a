"""Speed of prediction: compute only, from JPEG files, one photo, and the command line from a cold start.

    python -m benchmarks.predict_speed [--model lite] [--engines openvino bf16 int8 torch onnx] [--photos 400] [--cold]

Photos are real ones of 500 pixels. Rates are the best of several passes; CPU time per photo is reported too, because it
depends less on other load. bf16 and int8 are OpenVINO's, int8 calibrated on the same photos.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader import write_photos
from benchmarks.machine import peaks, write_report


def rate(function: Callable[[], object], photos: int, *, passes: int = 5) -> dict[str, float]:
    """Return photos per second (best and median pass) and CPU milliseconds per photo (minimum)."""
    function()
    walls, cpus = [], []
    for _ in range(passes):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {
        "photos_per_second": round(photos / min(walls), 1),
        "median_photos_per_second": round(photos / statistics.median(walls), 1),
        "cpu_ms_a_photo": round(1e3 * min(cpus) / photos, 2),
    }


def latency(function: Callable[[], object], *, repeats: int = 200) -> dict[str, float]:
    """Return milliseconds of a call: median, 90th percentile, minimum."""
    for _ in range(10):
        function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    return {"p50_ms": _ms(times, 50), "p90_ms": _ms(times, 90), "min_ms": round(min(times), 2)}


def _ms(times: list[float], percentile: float) -> float:
    return round(float(np.percentile(times, percentile)), 2)


def cold(*arguments: str, repeats: int = 5) -> dict[str, float]:
    """Return seconds of a whole command: median and minimum; the first run, which fills caches, is separate."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "intclip.cli", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    first, *rest = times
    return {"first_s": round(first, 3), "median_s": round(statistics.median(rest), 3), "min_s": round(min(rest), 3)}


def measure(predictor: Any, paths: list[Path]) -> dict[str, Any]:
    """Measure all figures of one model on one engine."""
    size = predictor.card.preprocessing.size
    pixels = np.random.default_rng(0).standard_normal((32, 3, size, size)).astype(np.float32)
    return {
        "compute_batch_32": rate(lambda: predictor.predict_pixels(pixels), 32),
        "from_jpeg": rate(lambda: predictor.predict(paths), len(paths), passes=3),
        "one_photo_pixels": latency(lambda: predictor.predict_pixels(pixels[:1])),
        "one_photo_file": latency(lambda: predictor.predict(paths[0])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lite")
    parser.add_argument("--engines", nargs="+", default=["openvino"], help="openvino, bf16, int8, torch, onnx")
    parser.add_argument("--photos", type=int, default=400)
    parser.add_argument("--cold", action="store_true", help="time the command line too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    import intclip
    from intclip.inference.engines import Precision

    report: dict[str, Any] = {"model": options.model, "peaks": peaks()}
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(Path(folder), options.photos, 500)
        for engine in options.engines:
            name = "openvino" if engine in ("bf16", "int8") else engine
            precision: Precision = "bf16" if engine == "bf16" else "f32"
            predictor = intclip.load(options.model, engine=name, device="cpu", precision=precision)
            if engine == "int8":
                predictor = predictor.quantize(paths[:100])
            report[engine] = measure(predictor, paths)
        if options.cold:
            report["cold_help"] = cold("--help")
            report["cold_predict"] = cold("predict", str(paths[0]), "-m", options.model)
    write_report(options.out, report)


if __name__ == "__main__":
    main()
