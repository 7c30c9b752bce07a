"""Unit vectors in FAISS: exact for small sets; for large ones an inverted file of codes, and exact among the best.

Sources: Jégou et al., Product Quantization for Nearest Neighbor Search, PAMI 2011; André et al., Quicker ADC, PAMI
2021 (codes of 4 bits, compared in registers); FAISS (Douze et al., 2024).
"""

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
_PROBED_SHARE = 8
_PER_CODE = 2
"""Dimensions per code of 4 bits."""
_ROUNDS = 10
_COMPARED = 20
"""Exact comparisons for each wanted result."""


def build_vectors(batches: Iterable[npt.NDArray[Any]], count: int, dim: int, *, exact_limit: int = EXACT_LIMIT) -> Any:
    """Build a FAISS index by inner product; vectors are stored in half precision, ids are their positions.

    Beyond `exact_limit` the vectors are divided into 2√N lists around centres, and each has D/4 bytes of codes. A
    query reads the codes of an eighth of the lists and is compared exactly with 20 candidates for each wanted result.
    Codes are in memory; the vectors stay on disk.

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
    lists = int(2 * count**0.5)
    index = _coded(dim, lists)
    held: list[npt.NDArray[np.float32]] = []
    for batch in batches:
        if index.is_trained:
            index.add(_rows(batch))
            continue
        held.append(_rows(batch))
        if (rows := sum(map(len, held))) >= min(count, _TRAIN_PER_LIST * lists):
            sample = np.concatenate(held)
            index.train(sample[np.random.default_rng(0).permutation(rows)])
            index.add(sample)
            held = []
    return index


def _coded(dim: int, lists: int) -> Any:
    """Make an empty index: lists of codes, and vectors in half precision."""
    faiss = require("faiss", "search")
    inner = faiss.METRIC_INNER_PRODUCT
    quantizer = faiss.IndexFlatIP(dim)
    parts = dim // _PER_CODE if dim % _PER_CODE == 0 else dim
    codes = faiss.IndexIVFPQFastScan(quantizer, dim, lists, parts, 4, inner)
    codes.nprobe = max(8, lists // _PROBED_SHARE)
    for training in (codes.cp, codes.pq.cp):
        training.seed, training.niter, training.min_points_per_centroid = 0, _ROUNDS, 1
    vectors = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, inner)
    index = faiss.IndexRefine(codes, vectors)
    # Python owns the parts; transfer ownership so that they live as long as the index.
    for part in (quantizer, codes, vectors):
        part.this.disown()
    codes.own_fields = index.own_fields = index.own_refine_index = True
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
    """Read an index; the vectors stay on disk until a query needs them.

    Raises:
        StorageError: It is missing or damaged.
        MissingExtraError: FAISS is not installed.
    """
    faiss = require("faiss", "search")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
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
    selected: dict[str, Any] = {}
    if allowed is not None:
        bits = np.packbits(allowed, bitorder="little")
        selected["sel"] = faiss.IDSelectorBitmap(len(bits), faiss.swig_ptr(bits))
    if isinstance(index, faiss.IndexRefine):
        codes = faiss.downcast_index(index.base_index)
        # Few photos are allowed: probe more lists to find enough of them.
        share = 1.0 if allowed is None else max(float(allowed.mean()), 1e-9)
        probed = faiss.SearchParametersIVF(nprobe=min(codes.nlist, int(codes.nprobe / share)), **selected)
        options = faiss.IndexRefineSearchParameters(k_factor=_COMPARED, base_index_params=probed)
    else:
        options = faiss.SearchParameters(**selected) if selected else None
    cosines, ids = index.search(_rows(query[None]), count, params=options)
    found = ids[0] >= 0
    return ids[0][found], cosines[0][found]


def _rows(batch: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(batch, dtype=np.float32)
