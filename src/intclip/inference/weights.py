"""Tensors on disk: a safetensors file that must match its manifest exactly. No torch, no pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from intclip.errors import BundleError, listed, reason
from intclip.files import sha256_file

Dtype = Literal["F32", "F16", "F64", "I64", "I32", "U8", "BOOL"]
MAX_HEADER_BYTES = 4 * 2**20
DAMAGED = "the bundle is damaged; fetch or copy it again"
"""End of messages about damaged bundles."""

_NAMES: dict[str, Dtype] = {
    "float32": "F32",
    "float16": "F16",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "bool": "BOOL",
}


class TensorInfo(BaseModel, frozen=True, extra="forbid"):
    """Shape and element type of one stored tensor."""

    dtype: Dtype
    shape: list[int]


def write_weights(
    file: Path, state: Mapping[str, npt.NDArray[Any]], *, dtype: Literal["float32", "float16"]
) -> dict[str, TensorInfo]:
    """Write tensors, floats as `dtype`, and return the manifest.

    Raises:
        BundleError: A tensor is not finite, or too large for float16.
    """
    from safetensors.numpy import save

    stored = {}
    for name, array in state.items():
        is_float = np.issubdtype(array.dtype, np.floating)
        if is_float and not np.isfinite(array).all():
            raise BundleError(f"tensor {name} holds NaN or infinity; the training diverged, so it is not saved")
        with np.errstate(over="ignore"):
            stored[name] = np.array(array, dtype=dtype if is_float else array.dtype, order="C")
        if is_float and not np.isfinite(stored[name]).all():
            raise BundleError(f"tensor {name} has values too large for float16; save with dtype='float32'")
    # Sorted, so that equal weights give equal bytes; written here because safetensors' own files have mode 600.
    file.write_bytes(save({name: stored[name] for name in sorted(stored)}, metadata={"format": "intclip-bundle"}))
    return {
        name: TensorInfo(dtype=_NAMES[array.dtype.name], shape=list(array.shape))
        for name, array in sorted(stored.items())
    }


def read_weights(file: Path, manifest: Mapping[str, TensorInfo], *, sha256: str) -> dict[str, npt.NDArray[Any]]:
    """Read tensors by name, floats as float32, after checking them against the manifest.

    Raises:
        BundleError: The file is damaged or its header too large; a tensor is missing, unexpected, misshapen, of another
            type, or not finite; or the hash differs.
    """
    from safetensors import SafetensorError, safe_open

    header = _read_header(file)
    _compare(file, header, manifest)
    state: dict[str, npt.NDArray[Any]] = {}
    try:
        with safe_open(os.fspath(file), framework="numpy") as tensors:
            for name in manifest:
                array = tensors.get_tensor(name)
                if np.issubdtype(array.dtype, np.floating):
                    array = array.astype(np.float32)
                    if not np.isfinite(array).all():
                        raise BundleError(f"{file}: tensor {name} holds NaN or infinity; {DAMAGED}")
                state[name] = array
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read ({reason(error)}); {DAMAGED}") from error
    if sha256_file(file) != sha256:
        raise BundleError(f"{file} is not the file this bundle was written with (SHA-256 differs); {DAMAGED}")
    return state


def _read_header(file: Path) -> dict[str, TensorInfo]:
    """Read names, shapes and types from the header, whose size must be within the file and the limit."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise BundleError(f"{file} is truncated; {DAMAGED}")
        if length > MAX_HEADER_BYTES:
            raise BundleError(f"{file} has a header of {length} bytes, the limit is {MAX_HEADER_BYTES}; {DAMAGED}")
        raw = stream.read(length)
    try:
        content = json.loads(raw)
        content.pop("__metadata__", None)
        return {name: TensorInfo(dtype=entry["dtype"], shape=entry["shape"]) for name, entry in content.items()}
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise BundleError(f"{file} is not a safetensors file of known types; {DAMAGED}") from error


def _compare(file: Path, found: Mapping[str, TensorInfo], manifest: Mapping[str, TensorInfo]) -> None:
    if missing := sorted(manifest.keys() - found.keys()):
        raise BundleError(f"{file} lacks {listed(missing, 5)}; {DAMAGED}")
    if extra := sorted(found.keys() - manifest.keys()):
        raise BundleError(f"{file} has unexpected tensors {listed(extra, 5)}; {DAMAGED}")
    for name, expected in manifest.items():
        if found[name] != expected:
            raise BundleError(
                f"{file}: tensor {name} is {found[name].dtype} {found[name].shape}, "
                f"the bundle says {expected.dtype} {expected.shape}; {DAMAGED}"
            )
