"""Create or update an index of photos; only new or changed photos are computed."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from intclip.batch.check import verify_job
from intclip.batch.job import (
    INPUTS,
    MANIFEST,
    PROGRESS,
    SHARDS,
    Job,
    JobOptions,
    ModelOptions,
    model_identity,
    plan_job,
    read_job,
)
from intclip.batch.references import Reference, references
from intclip.batch.run import run_job
from intclip.batch.shards import read_shard, to_matrix
from intclip.data.remote import filesystem, is_remote
from intclip.data.sample import EmbeddedPhoto, RemoteFile, TarMember
from intclip.errors import StorageError, reason
from intclip.extras import require
from intclip.files import atomic_directory, hold_lock, write_text
from intclip.search.vectors import build_vectors, save_vectors

FORMAT = 1
INDEX, PHOTOS, ERRORS, VECTORS, WORK, LOCK = (
    "index.json", "photos.parquet", "errors.parquet", "vectors.faiss", "work", ".lock"
)  # fmt: skip
_ROWS = 8192
_GENERATION = re.compile(r"g-\d{6,}")


class IndexInfo(BaseModel, frozen=True, extra="forbid"):
    """Content of `index.json`.

    Attributes:
        format: Version of the layout.
        generation: Name of the current generation's folder.
        model: The model.
        identity: See `model_identity`.
        taxonomy: `Taxonomy.to_dict`.
        thresholds: K thresholds.
        photos: Number N of searchable photos.
        errors: Number of photos that could not be read.
        dim: Size D of an embedding.
    """

    format: int = FORMAT
    generation: str
    model: ModelOptions
    identity: str
    taxonomy: dict[str, Any]
    thresholds: list[float]
    photos: int
    errors: int
    dim: int


@dataclass(frozen=True)
class Updated:
    """Result of an update.

    Attributes:
        photos: Searchable photos.
        computed: New or changed photos.
        kept: Unchanged photos.
        removed: Removed photos.
        errors: Unreadable photos.
    """

    photos: int
    computed: int
    kept: int
    removed: int
    errors: int


def read_index(folder: str | os.PathLike[str]) -> IndexInfo:
    """Read an index's metadata.

    Raises:
        StorageError: It is missing or damaged.
    """
    path = Path(folder, INDEX)
    try:
        return IndexInfo.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"no index in {folder}; create one with: intclip index PHOTOS --out {folder}") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {reason(error)}; check its permissions") from error
    except ValidationError as error:
        raise StorageError(f"{path} is damaged or of another version; index again in another folder") from error


def update_index(
    folder: str | os.PathLike[str],
    sources: Sequence[str],
    options: JobOptions,
    *,
    add: bool = False,
    retry_errors: bool = False,
    exclude: Sequence[str] = (),
    run: Callable[[Job], object] = run_job,
) -> Updated:
    """Create or update an index of the photos of some sources.

    A killed update continues where it stopped; readers see the old index until the new one is complete.

    Args:
        folder: Folder of the index.
        sources: See `references`; or the folder of one finished batch job with embeddings, whose results are reused.
        options: How new photos are computed; the model must be that of an existing index.
        add: Keep indexed photos that are not in the sources; otherwise they are removed.
        retry_errors: Retry unreadable photos even if unchanged.
        exclude: See `references`.
        run: Runs the batch job over new photos: `run_job`, or a `partial` of it.

    Raises:
        StorageError: The index belongs to another model, or cannot be written; the folder has other
            files; a batch job has no embeddings.
        IntclipError: The sources have no photos, or the model cannot be loaded.
    """
    folder = Path(folder)
    require("faiss", "search")
    finished = _finished_job(sources)
    # Checked before the folder is created, so that sources without photos leave no folder.
    inputs = references(sources, exclude=exclude) if finished is None else _inputs(finished)
    named: dict[str, tuple[str, Reference]] = {}
    for reference in inputs:
        named.setdefault(reference.path, (_stamp(reference), reference))
    _refuse_other_files(folder)
    with hold_lock(folder / LOCK, f"another process is using {folder}; wait for it"):
        before = read_index(folder) if (folder / INDEX).exists() else None
        _clean(folder, before)
        model = options.model if finished is None else finished.manifest.options.model
        predictor = model.load()
        identity = model_identity(predictor, model)
        if before is not None and before.identity != identity:
            raise StorageError(f"{folder} was indexed with another model ({before.model.spec}); choose another --out")
        known = _known(folder, before, retry_errors=retry_errors)
        new = [reference for path, (stamp, reference) in named.items() if known.get(path) != stamp]
        keep = {path for path in known if path not in named} if add else set()
        keep |= {path for path, (stamp, _) in named.items() if known.get(path) == stamp}
        if not new and keep == known.keys() and before is not None:
            shutil.rmtree(folder / WORK, ignore_errors=True)
            return Updated(before.photos, 0, before.photos, 0, before.errors)
        job = finished
        if job is None and new:
            embedding = options.model_copy(update={"embedding": True})
            stamps = "\n".join(named[reference.path][0] for reference in new)
            job = _plan(folder / WORK, sources, embedding, new, hashlib.sha256(stamps.encode()).hexdigest())
            run(job)
        fresh = {reference.path: named[reference.path][0] for reference in new}
        generation, counts, dim = _write_generation(folder, before, keep, job, fresh)
        info = IndexInfo(
            generation=generation,
            model=model,
            identity=identity,
            taxonomy=predictor.taxonomy.to_dict(),
            thresholds=[float(level) for level in predictor.resolve_thresholds(None, ("image",))],
            photos=counts[PHOTOS],
            errors=counts[ERRORS],
            dim=dim,
        )
        write_text(folder / INDEX, info.model_dump_json(indent=1) + "\n")
        _clean(folder, info)
        shutil.rmtree(folder / WORK, ignore_errors=True)
        removed = sum(path not in keep and path not in fresh for path in known)
        return Updated(info.photos, len(new), len(keep), removed, info.errors)


def _refuse_other_files(folder: Path) -> None:
    """Reject a folder with other files, except what a killed first update left.

    Files that an update will remove are recognised by content, not only by name: photos may be in a folder
    "work".
    """
    parts = {path.name: {PHOTOS, ERRORS, VECTORS} for path in _generations(folder)}
    parts[WORK] = {MANIFEST, INPUTS, SHARDS, PROGRESS}
    indexed = (folder / INDEX).exists()
    for path in folder.glob("[!.]*"):
        own = parts.get(path.name)
        if (own is None and not indexed) or (own and not own.issuperset(file.name for file in path.glob("[!.]*"))):
            raise StorageError(f"{folder} has other files; choose a new folder for the index")


def _generations(folder: Path) -> list[Path]:
    return [path for path in folder.glob("g-*") if _GENERATION.fullmatch(path.name)]


def _clean(folder: Path, info: IndexInfo | None) -> None:
    """Remove old generations and partial files of a killed update."""
    for path in (*_generations(folder), *folder.glob(".*.partial")):
        if info is None or path.name != info.generation:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)


def _finished_job(sources: Sequence[str]) -> Job | None:
    # Both, because a folder of photos may contain another kind of manifest.
    if len(sources) != 1 or not (Path(sources[0], MANIFEST).is_file() and Path(sources[0], SHARDS).is_dir()):
        return None
    job = read_job(sources[0])
    if not job.manifest.options.embedding:
        raise StorageError(f"the batch job {sources[0]} has no embeddings; run it with --embedding")
    verify_job(job)
    return job


def _inputs(job: Job) -> Iterator[Reference]:
    for number in range(len(job.manifest.shards)):
        yield from job.inputs(number)


def _plan(folder: Path, sources: Sequence[str], options: JobOptions, inputs: Sequence[Reference], version: str) -> Job:
    """Return the job over the new photos, continuing one left by a killed update if its photos are unchanged."""
    try:
        return plan_job(folder, sources, options, inputs=inputs, version=version)
    except StorageError:
        shutil.rmtree(folder, ignore_errors=True)
        return plan_job(folder, sources, options, inputs=inputs, version=version)


def _stamp(reference: Reference) -> str:
    """Return a stamp that changes with the photo: size and modification time, or the store's metadata."""
    image = reference.image()
    if isinstance(image, TarMember):
        path = str(image.archive)
    elif isinstance(image, EmbeddedPhoto):
        path = str(image.table)
    else:
        path = image.url if isinstance(image, RemoteFile) else str(image)
    place = f"{reference.offset}+{reference.size}@" if reference.offset is not None else ""
    if is_remote(path):
        try:
            system, inner = filesystem(path)
            return place + hashlib.sha256(str(system.ukey(inner)).encode()).hexdigest()[:32]
        except Exception:  # stores have various errors; reading the photo will report it
            return "absent"
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return "absent"
    return f"{place}{status.st_size}-{status.st_mtime_ns}"


def _known(folder: Path, before: IndexInfo | None, *, retry_errors: bool) -> dict[str, str]:
    """Map every path of the index to its stamp; with `retry_errors`, unreadable ones have none."""
    if before is None:
        return {}
    parquet = require("pyarrow.parquet", "core")
    known: dict[str, str] = {}
    for name in (PHOTOS, ERRORS):
        try:
            table = parquet.read_table(folder / before.generation / name, columns=["path", "stamp"])
        except Exception as error:
            raise StorageError(f"{folder} is damaged ({name}); remove it and index again") from error
        stamps = [""] * len(table) if retry_errors and name == ERRORS else table["stamp"].to_pylist()
        known |= dict(zip(table["path"].to_pylist(), stamps, strict=True))
    return known


def _write_generation(
    folder: Path, before: IndexInfo | None, keep: set[str], job: Job | None, fresh: dict[str, str]
) -> tuple[str, dict[str, int], int]:
    """Write kept and new photos into a new folder: its name, the rows of each table, and the embeddings' size."""
    number = 1 + max((int(path.name[2:]) for path in _generations(folder)), default=0)
    generation = f"g-{number:06d}"
    parquet = require("pyarrow.parquet", "core")
    counts = {PHOTOS: 0, ERRORS: 0}
    dim = before.dim if before is not None else 0
    with atomic_directory(folder / generation) as partial:
        writers: dict[str, Any] = {}
        try:
            for name, table in _parts(folder, before, keep, job, fresh):
                if name not in writers:
                    writers[name] = parquet.ParquetWriter(partial / name, table.schema, compression="zstd")
                writers[name].write_table(table)
                counts[name] += len(table)
                if name == PHOTOS:
                    dim = table.schema.field("embedding").type.list_size
            _empty(partial, writers)
        finally:
            for writer in writers.values():
                writer.close()
        if not counts[PHOTOS]:
            raise StorageError(f"none of the {counts[ERRORS]:,} photos could be read; nothing was indexed")
        vectors = build_vectors(_embeddings(partial / PHOTOS), counts[PHOTOS], dim)
        save_vectors(vectors, partial / VECTORS)
    return generation, counts, dim


def _parts(
    folder: Path, before: IndexInfo | None, keep: set[str], job: Job | None, fresh: dict[str, str]
) -> Iterator[tuple[str, Any]]:
    """Return tables of photos and of errors: kept ones, then those of the job, each path once."""
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    if before is not None and keep:
        for name in (PHOTOS, ERRORS):
            with parquet.ParquetFile(folder / before.generation / name) as file:
                for batch in file.iter_batches(batch_size=_ROWS):
                    table = arrow.Table.from_batches([batch])
                    yield name, table.filter(arrow.array([path in keep for path in table["path"].to_pylist()]))
    if job is None:
        return
    waiting = dict(fresh)
    for number in range(len(job.manifest.shards)):
        table = read_shard(job.shard_path(number))
        stamps = [waiting.pop(path, None) for path in table["path"].to_pylist()]
        table = table.append_column("stamp", arrow.array(stamps, arrow.string()))
        table = table.filter(table["stamp"].is_valid()).replace_schema_metadata(None)
        readable = table["error"].is_null()
        if "embedding" in table.column_names:
            yield PHOTOS, table.filter(readable).select(["path", "stamp", "probabilities", "embedding"])
        failed = table["error"].is_valid()
        yield ERRORS, table.filter(failed).select(["path", "stamp", "error"])


def _empty(folder: Path, writers: dict[str, Any]) -> None:
    """Create empty tables for those without rows."""
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    for name in (PHOTOS, ERRORS):
        if name not in writers:
            schema = arrow.schema([("path", arrow.string()), ("stamp", arrow.string()), ("error", arrow.string())])
            parquet.write_table(schema.empty_table(), folder / name)


def _embeddings(path: Path) -> Iterable[np.ndarray]:
    parquet = require("pyarrow.parquet", "core")
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS, columns=["embedding"]):
            yield to_matrix(batch.column(0))
