"""What an index of a million photos takes and finds: memory, disk, time of a query, recall beside comparing with all.

    python -m benchmarks.index --out docs/figures/index.json
    python -m benchmarks.index --photos INDEX --out docs/figures/index-photos.json

The vectors are made. By default they are 5,000 kinds of photos and single photos around them, half of the variance
each, with the mean and covariance that embeddings of photos by `lite` have. With `--photos`, the folder of an index of
thousands of photos, they are its embeddings, each moved by the difference of two of its 32 nearest. Queries are further
vectors of the same kind. Seconds are CPU seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow.parquet
from safetensors.numpy import load_file

from benchmarks.machine import write_report
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.batch.shards import to_matrix
from intclip.search.index import PHOTOS, VECTORS, read_index
from intclip.search.vectors import build_vectors, load_vectors, nearest, save_vectors

KINDS, NEAR, MOVED = 5000, 32, 0.7
BATCH, TOP = 8192, 10
QUERIES = "queries.npy"
Rows = npt.NDArray[np.float32]


class Made:
    """Unit vectors of made photos.

    Args:
        photos: Folder of an index, or None.
    """

    def __init__(self, photos: Path | None) -> None:
        if photos is None:
            moments = load_file(LITE_BACKBONES["lite"].projection)
            values, axes = np.linalg.eigh(moments["moments.covariance"])
            self._root = (axes * np.sqrt(np.maximum(values, 0) / 2)).T.astype(np.float32)
            self._centres = moments["moments.mean"] + self._draw(np.random.default_rng(0), KINDS)
            self._near = None
        else:
            rows = pyarrow.parquet.read_table(photos / read_index(photos).generation / PHOTOS, columns=["embedding"])
            self._centres = to_matrix(rows.column(0).combine_chunks()).astype(np.float32)
            everything = faiss.IndexFlatIP(self._centres.shape[1])
            everything.add(self._centres)
            self._near = everything.search(self._centres, NEAR + 1)[1]
        self.dim = self._centres.shape[1]

    def rows(self, seed: int, count: int) -> Rows:
        """(count, D), always the same for a seed."""
        rng = np.random.default_rng([1, seed])
        chosen = rng.integers(0, len(self._centres), count)
        if self._near is None:
            moved = self._draw(rng, count)
        else:
            left, right = (self._near[chosen, rng.integers(0, NEAR + 1, count)] for _ in range(2))
            moved = MOVED * (self._centres[left] - self._centres[right])
        rows = self._centres[chosen] + moved
        unit: Rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def batches(self, count: int) -> Iterator[Rows]:
        """`count` rows."""
        for start in range(0, count, BATCH):
            yield self.rows(start, min(BATCH, count - start))

    def _draw(self, rng: np.random.Generator, count: int) -> Rows:
        drawn: Rows = rng.standard_normal((count, len(self._root)), dtype=np.float32) @ self._root
        return drawn


def best(made: Made, queries: Rows, count: int) -> tuple[npt.NDArray[np.int64], Rows]:
    """Ids and cosines (Q, TOP) of the vectors nearest to each query, by comparing with all."""
    cosines, ids = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for number, rows in enumerate(made.batches(count)):
        found = queries @ rows.T
        cosines = np.concatenate([cosines, found], axis=1)
        ids = np.concatenate([ids, np.broadcast_to(number * BATCH + np.arange(len(rows)), found.shape)], axis=1)
        kept = np.argpartition(-cosines, TOP - 1, axis=1)[:, :TOP]
        cosines, ids = np.take_along_axis(cosines, kept, 1), np.take_along_axis(ids, kept, 1)
    return ids, cosines


def memory() -> int:
    """Bytes of this process that lie in no file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def ask(folder: Path) -> dict[str, object]:
    """What queries find, and what that takes, in a process that has built nothing."""
    queries, before = np.load(folder / QUERIES), memory()
    index = load_vectors(folder / VECTORS)
    found, start = [nearest(index, queries[0], TOP)[0].tolist()], time.process_time()
    found += [nearest(index, query, TOP)[0].tolist() for query in queries[1:]]
    milliseconds = 1000 * (time.process_time() - start) / (len(queries) - 1)
    return {"found": found, "milliseconds": milliseconds, "memory": memory() - before}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--photos", type=Path, help="folder of an index of photos, around which vectors are made")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ask", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask is not None:
        print(json.dumps(ask(arguments.ask)))
        return
    made = Made(arguments.photos)
    queries = made.rows(2**40, arguments.queries)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, QUERIES), queries)
        start, file = time.process_time(), Path(folder, VECTORS)
        save_vectors(build_vectors(made.batches(arguments.count), arguments.count, made.dim), file)
        built = time.process_time() - start
        command = [sys.executable, "-m", "benchmarks.index", "--ask", folder]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        size = file.stat().st_size
    start = time.process_time()
    wanted, cosines = best(made, queries, arguments.count)
    compared = time.process_time() - start
    shared = [len(set(ids) & set(right)) for ids, right in zip(answer["found"], wanted.tolist(), strict=True)]
    write_report(
        arguments.out,
        {
            "vectors": arguments.count,
            "dimensions": made.dim,
            "queries": arguments.queries,
            "cosine_of_nearest": round(float(cosines.max(axis=1).mean()), 3),
            "recall_at_10": round(sum(shared) / (TOP * arguments.queries), 4),
            "disk_bytes_a_photo": round(size / arguments.count, 1),
            "memory_bytes_a_photo": round(answer["memory"] / arguments.count, 1),
            "milliseconds_a_query": round(answer["milliseconds"], 2),
            "build_cpu_s": round(built, 1),
            "making_and_comparing_all_cpu_s": round(compared, 1),
        },
    )


if __name__ == "__main__":
    main()
