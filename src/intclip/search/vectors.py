"""Unit vectors in FAISS: exact for small sets, an inverted file for large ones."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intclip.errors import StorageError
from intclip.extras import require
from intclip.files import atomic_path

EXACT_LIMIT = 200_000
"""Maximum number of vectors for exhaustive search: about 10 ms on one core for 384 dimensions."""
_TRAIN_PER_LIST = 64
_PROBED_SHARE = 16


def build_vectors(batches: Iterable[npt.NDArray[Any]], count: int, dim: int, *, exact_limit: int = EXACT_LIMIT) -> Any:
    """Build a FAISS index by inner product; vectors are stored in half precision, ids are their positions.

    Beyond `exact_limit` the vectors are divided into 4√N lists around centres, and a query reads a sixteenth of them:
    the results are nearly always the same, and the time grows with √N.

    Args:
        batches: Unit vectors (B, D), `count` in total; read once, the first ones to place the centres.
        count: Number N of vectors.
        dim: D.
        exact_limit: Maximum N for exhaustive search.

    Raises:
        MissingExtraError: FAISS is not installed.
    """
    faiss = require("faiss", "search")
    half, inner = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    if count <= exact_limit:
        index = faiss.IndexScalarQuantizer(dim, half, inner)
        for batch in batches:
            index.add(_rows(batch))
        return index
    lists = int(4 * count**0.5)
    # Python owns the quantiser; transfer ownership so that it lives as long as the index.
    quantizer = faiss.IndexFlatIP(dim)
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, lists, half, inner, False)
    quantizer.this.disown()
    index.own_fields = True
    index.nprobe = max(8, lists // _PROBED_SHARE)
    held: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        if index.is_trained:
            index.add(_rows(batch))
            continue
        held.append(_rows(batch))
        if (rows := sum(map(len, held))) >= min(count, _TRAIN_PER_LIST * lists):
            sample = np.concatenate(held)
            index.cp.seed = 0
            index.cp.min_points_per_centroid = 1
            index.train(sample[np.random.default_rng(0).permutation(rows)])
            index.add(sample)
            held = []
    return index


def save_vectors(index: Any, path: Path) -> None:
    """Write an index atomically.

    Raises:
        StorageError: It cannot be written.
    """
    faiss = require("faiss", "search")
    with atomic_path(path) as partial:
        try:
            faiss.write_index(index, str(partial))
        except RuntimeError as error:
            raise StorageError(f"cannot write {path}; free space or choose a writable place") from error


def load_vectors(path: Path) -> Any:
    """Read an index; the lists of a large one stay on disk until a query needs them.

    Raises:
        StorageError: It is missing or damaged.
        MissingExtraError: FAISS is not installed.
    """
    faiss = require("faiss", "search")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)
    except RuntimeError as error:
        raise StorageError(f"{path} is damaged or missing; remove the index's folder and index again") from error


def nearest(
    index: Any, query: npt.NDArray[np.float32], count: int, allowed: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return ids and cosines of the nearest vectors, highest cosine first.

    Args:
        index: See `build_vectors`.
        query: Unit vector (D,).
        count: Maximum number of results.
        allowed: Mask (N,) of allowed ids.
    """
    faiss = require("faiss", "search")
    count = min(count, index.ntotal if allowed is None else int(allowed.sum()))
    if count == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    ivf = hasattr(index, "nprobe")
    options: dict[str, Any] = {}
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        options["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
        if ivf:  # few photos are allowed: probe more lists to find enough of them
            share = max(float(allowed.mean()), 1e-9)
            options["nprobe"] = min(index.nlist, int(index.nprobe / share))
    kind = faiss.SearchParametersIVF if ivf else faiss.SearchParameters
    cosines, ids = index.search(_rows(query[None]), count, params=kind(**options) if options else None)
    found = ids[0] >= 0
    return ids[0][found], cosines[0][found]


def _rows(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(batch, dtype=np.float32)
