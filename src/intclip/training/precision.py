"""Precision of a run: autocast, and float32 matrix products."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set torch's float32 matmul precision ("highest", "high" or "medium"), and restore it afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Return the autocast context of a recipe's precision on a device; "fp16" means fp32 except on a GPU."""
    if precision == "auto":
        on_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported()
        precision = "bf16" if on_gpu else "fp32"
    if precision == "fp32" or (precision == "fp16" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)
