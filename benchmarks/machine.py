"""Peak performance of this machine, and reports."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from intclip.machine import describe_machine


def best_seconds(function: Callable[[], object], *, repeats: int = 7) -> float:
    """Return the shortest of some runs."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def peaks(size: int = 2048, megabytes: int = 256) -> dict[str, float]:
    """Measure the CPU's peaks: float32 GFLOP/s by a square matrix product, GB/s (read + written) by a copy."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    product = torch.empty(size, size)
    source = torch.ones(megabytes * 2**20 // 4)
    target = torch.empty_like(source)
    flops = 2 * size**3 / best_seconds(lambda: torch.mm(left, right, out=product))
    moved = 2 * source.nbytes / best_seconds(lambda: target.copy_(source))
    return {"gemm_GFLOPs": round(flops / 1e9, 1), "copy_GBs": round(moved / 1e9, 1)}


def openvino_has_bf16() -> bool:
    """Return whether OpenVINO computes in bf16 on this processor."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def write_report(path: Path | None, report: dict[str, Any]) -> None:
    """Print a report as JSON with the machine's description, and write it if a path is given."""
    machine = describe_machine() | {"threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        machine["accelerator"] = torch.cuda.get_device_name()
    text = json.dumps({"machine": machine, **report}, indent=2, ensure_ascii=False)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
