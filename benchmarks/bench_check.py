"""Check for slowdowns: ratios of two alternating measurements, compared with the committed ratios.

    make bench-check                              # compare; exit code 1 if a ratio is worse by more than 10 %
    python -m benchmarks.bench_check --write      # commit today's ratios as docs/figures/bench_check.json

Only ratios of CPU seconds are compared, not times, because they depend little on the load. They do depend on the
processor's instructions, so each set of instructions has its own. A ratio is the speed-up of the first over the second;
larger is better.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from intclip.backbones import load_backbone
from intclip.inference import load
from intclip.inference.engines import prune
from intclip.inference.exported import PREDICTION_OUTPUTS
from intclip.inference.speed import noise_pixels
from intclip.inference.text_engine import PAYS_FROM, use_engine
from intclip.machine import describe_machine

COMMITTED = Path(__file__).parents[1] / "docs" / "figures" / "bench_check.json"
WORSE = 0.10
Pair = tuple[Callable[[], object], Callable[[], object]]


def ratio(fast: Callable[[], object], slow: Callable[[], object], turns: int) -> float:
    """Return CPU seconds of the second over those of the first: each its fastest of alternating turns."""
    best = [float("inf"), float("inf")]
    for _ in range(turns):
        for side, call in enumerate((fast, slow)):
            start = time.process_time()
            call()
            best[side] = min(best[side], time.process_time() - start)
    return best[1] / best[0]


def engine_over_torch() -> Pair:
    """Compare a batch through `lite` on OpenVINO and in torch."""
    pixels = noise_pixels(8, 224)
    models = {name: load("lite", engine=name, device="cpu") for name in ("openvino", "torch")}
    return partial(models["openvino"].predict_pixels, pixels), partial(models["torch"].predict_pixels, pixels)


def engine_over_raw() -> Pair:
    """Compare the predictor with the same graph in plain OpenVINO, on a batch through `lite`; the optimum is 1."""
    import openvino

    pixels = noise_pixels(32, 224)
    model = load("lite", engine="openvino")
    graph = model._graph
    assert graph is not None
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
    raw = openvino.Core().compile_model(prune(graph.model, PREDICTION_OUTPUTS), "CPU", hints)
    return partial(model.predict_pixels, pixels), lambda: [raw(pixels[i : i + 2]) for i in range(0, 32, 2)]


def texts_over_torch() -> Pair:
    """Compare 64 texts through MiniLM on the engine and in torch."""
    rng = np.random.default_rng(0)
    words = np.array(
        ["photo", "friends", "beach", "sunset", "people", "share", "moment", "family", "remarkable", "of", "the"]
    )
    texts = [" ".join(rng.choice(words, size=80)) + f" {i}" for i in range(PAYS_FROM)]
    plain, fast = load_backbone("lite").text, load_backbone("lite").text
    use_engine(fast)
    fast.embed_texts(texts)
    return partial(fast.embed_texts, texts), partial(plain.embed_texts, texts)


CHECKS: dict[str, Callable[[], Pair]] = {
    "lite, OpenVINO over torch": engine_over_torch,
    "lite, predictor over raw OpenVINO": engine_over_raw,
    "MiniLM, OpenVINO over torch": texts_over_torch,
}


def main() -> None:
    """Measure, and compare or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="commit these ratios instead of comparing")
    parser.add_argument("--turns", type=int, default=12)
    arguments = parser.parse_args()
    machine = describe_machine()
    instructions = machine["instructions"][-1] if machine["instructions"] else machine["processor"]
    reports = json.loads(COMMITTED.read_text(encoding="utf-8"))
    if not arguments.write and instructions not in reports:
        known = ", ".join(reports)
        sys.exit(f"{COMMITTED} has ratios for {known}, not for {instructions}; measure a trusted revision with --write")
    found = {name: round(ratio(*make(), arguments.turns), 2) for name, make in CHECKS.items()}
    if arguments.write:
        reports[instructions] = {"machine": machine, "ratios": found}
        COMMITTED.write_text(json.dumps(reports, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    committed = reports[instructions]["ratios"]
    slower = [name for name, value in found.items() if value < (1 - WORSE) * committed[name]]
    for name, value in found.items():
        mark = "slower" if name in slower else "ok"
        print(f"{mark:7} {name}: {value} × (committed {committed[name]} ×)")
    sys.exit(bool(slower))


if __name__ == "__main__":
    main()
