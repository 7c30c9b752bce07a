"""Description of this machine for measurements, and a check for free memory."""

import mmap
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_PACKAGES = ("intclip", "torch", "openvino", "onnxruntime", "transformers", "numpy", "pillow")
_ORDINARY = 256 * 2**20  # bytes; about what decoding and rotating a photo of 50 megapixels takes


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, instruction sets, memory, load, and library versions."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "processor": info.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "memory_GB": _memory(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": dict(_versions()),
    }


def memory_is_short() -> bool:
    """Return whether less memory is left than ordinary work takes, so that an error may not be the input's fault."""
    try:
        mmap.mmap(-1, _ORDINARY).close()  # reserved, never touched
    except (OSError, MemoryError):
        return True
    return False


def _versions() -> list[tuple[str, str]]:
    found = []
    for name in _PACKAGES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def _memory() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text(encoding="utf-8", errors="replace").split("\n\n", 1)[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
