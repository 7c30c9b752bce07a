"""Options, inputs and shards of a batch job, stored on disk before any photo is read."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.backbones.sources import source_files
from intclip.batch.references import Reference, references
from intclip.errors import StorageError, listed, reason
from intclip.extras import require
from intclip.files import atomic_path, hold_lock, sha256_file, write_text
from intclip.inference.bundle import JSON_FILE
from intclip.inference.engines import Precision
from intclip.inference.exported import SUFFIXES
from intclip.inference.loading import bundle_path, is_zero_shot, load
from intclip.inference.predictor import PHOTOS, Predictor
from intclip.machine import memory_is_short

FORMAT = 1
MANIFEST, INPUTS, SHARDS, PROGRESS, LOCK = "manifest.json", "inputs.parquet", "shards", "progress.json", ".lock"
SHARD_SIZE = 2048
"""Default photos per shard, which a killed worker loses at most: half a minute of one core with `lite`."""
Dedupe = Literal["off", "content", "perceptual"]


class ModelOptions(BaseModel, frozen=True, extra="forbid"):
    """Arguments of `intclip.load`."""

    spec: str = "lite"
    taxonomy: str | None = None
    sentences: str = "11-15"
    checkpoint: str | None = None
    engine: str = "auto"
    device: str = "auto"
    precision: Precision = "f32"
    threads: int | None = None

    def load(self) -> Predictor:
        """Load the model.

        Raises:
            IntclipError: It cannot be loaded, or does not use photos.
        """
        options = self.model_dump()
        predictor = load(options.pop("spec"), **options)
        predictor.check_photos()
        return predictor


class JobOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of a job.

    Attributes:
        model: The model.
        threshold: Smallest probability of a predicted label, instead of the model's thresholds.
        embedding: Store each photo's embedding.
        dedupe: "content" computes photos with equal bytes once per shard and marks them in `duplicates.parquet`;
            "perceptual" also marks resized and recompressed copies.
        batch_size: Photos per batch.
        shard_size: Photos per shard.
        lenient: Also read truncated photos.
    """

    model: ModelOptions = ModelOptions()
    threshold: float | None = None
    embedding: bool = False
    dedupe: Dedupe = "off"
    batch_size: int = 32
    shard_size: int = SHARD_SIZE
    lenient: bool = False


class ShardRange(BaseModel, frozen=True, extra="forbid"):
    """A shard's file and its inputs: rows `start` to `stop` − 1."""

    file: str
    start: int
    stop: int


class Manifest(BaseModel, frozen=True, extra="forbid"):
    """A job, as `manifest.json` describes it.

    Attributes:
        format: Version of the layout.
        source: The sources of the inputs.
        fingerprint: SHA-256 over all inputs' paths, in order, and the version of their content if it is known.
        photos: Number of inputs.
        options: See `JobOptions`.
        model: SHA-256 over the model's card and files.
        labels: Names of the K labels, in the order of the probabilities.
        thresholds: K thresholds.
        shards: In order; together they cover every input once.
    """

    format: int = FORMAT
    source: list[str]
    fingerprint: str
    photos: int
    options: JobOptions
    model: str
    labels: list[str]
    thresholds: list[float]
    shards: list[ShardRange]

    @property
    def key(self) -> str:
        """Hash of everything that a shard's rows depend on, stored in every shard."""
        parts = [
            self.fingerprint,
            self.model,
            self.thresholds,
            self.options.embedding,
            self.options.dedupe,
            self.options.shard_size,
            self.options.lenient,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Job:
    """A planned job.

    Attributes:
        folder: Its folder.
        manifest: Its description.
    """

    folder: Path
    manifest: Manifest

    def shard_path(self, number: int) -> Path:
        """Return the file of a shard."""
        return self.folder / SHARDS / self.manifest.shards[number].file

    def inputs(self, number: int) -> list[Reference]:
        """Read the inputs of a shard, in order.

        Raises:
            StorageError: `inputs.parquet` is missing or damaged.
        """
        parquet = require("pyarrow.parquet", "core")
        try:
            with parquet.ParquetFile(self.folder / INPUTS, page_checksum_verification=True) as file:
                columns = file.read_row_group(number).to_pydict()
        except Exception as error:  # Arrow's errors have no common base class
            if memory_is_short():
                raise MemoryError from error
            raise StorageError(
                f"{self.folder / INPUTS} is damaged or missing; remove {self.folder} and start the job again"
            ) from error
        return [Reference(*row) for row in zip(columns["path"], columns["offset"], columns["size"], strict=True)]


def plan_job(
    folder: str | os.PathLike[str],
    sources: Sequence[str],
    options: JobOptions,
    *,
    inputs: Iterable[Reference] | None = None,
    version: str = "",
) -> Job:
    """Begin a job in a folder, or find the existing one.

    Args:
        folder: Empty, new, or of this job.
        sources: See `references`.
        options: See `JobOptions`.
        inputs: The photos, if already known; `sources` is then only a name.
        version: Of the photos' content; a job over another one is another job.

    Raises:
        StorageError: The folder has another job, another process is using it, or it cannot be written.
        IntclipError: The source has no photos, or the model cannot be loaded.
    """
    folder = Path(folder)
    # Hidden files are the lock and remains of a killed start.
    others = [path for path in folder.glob("*") if path.name != INPUTS and not path.name.startswith(".")]
    if others and not (folder / MANIFEST).exists():
        raise StorageError(f"{folder} has other files; choose a new folder for the job")
    with lock_job(folder):  # two jobs starting in one folder would overwrite each other's inputs
        return _plan(folder, sources, options, inputs, version)


def lock_job(folder: Path) -> AbstractContextManager[None]:
    """Lock a job's folder.

    Raises:
        StorageError: Another process holds it, or it cannot be written.
    """
    return hold_lock(folder / LOCK, f"another process is using {folder}; wait for it, or check it with --status")


def _plan(
    folder: Path, sources: Sequence[str], options: JobOptions, inputs: Iterable[Reference] | None, version: str
) -> Job:
    before = read_job(folder) if (folder / MANIFEST).exists() else None
    predictor = options.model.load()
    target = folder / INPUTS if before is None else None
    fingerprint, photos = _list_inputs(target, references(sources) if inputs is None else inputs, options.shard_size)
    if version:
        fingerprint = hashlib.sha256(f"{fingerprint}{version}".encode()).hexdigest()
    size = options.shard_size
    manifest = Manifest(
        source=list(sources),
        fingerprint=fingerprint,
        photos=photos,
        options=options,
        model=model_identity(predictor, options.model),
        labels=list(predictor.taxonomy.names),
        thresholds=[float(level) for level in predictor.resolve_thresholds(options.threshold, PHOTOS)],
        shards=[
            ShardRange(file=f"part-{number:07d}.parquet", start=start, stop=min(start + size, photos))
            for number, start in enumerate(range(0, photos, size))
        ],
    )
    if before is None:
        write_text(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        (folder / SHARDS).mkdir(exist_ok=True)
    elif before.manifest.key != manifest.key:
        difference = _difference(before.manifest, manifest)
        raise StorageError(f"{folder} has another job ({difference}); choose another --out")
    return Job(folder, before.manifest if before is not None else manifest)


def read_job(folder: str | os.PathLike[str]) -> Job:
    """Open the job in a folder.

    Raises:
        StorageError: There is none, or its manifest is damaged.
    """
    folder = Path(folder)
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StorageError(f"no batch job in {folder}: it has no {MANIFEST}") from error
    except OSError as error:
        raise StorageError(f"cannot read {folder / MANIFEST}: {reason(error)}; check its permissions") from error
    except ValidationError as error:
        raise StorageError(f"{folder / MANIFEST} is damaged or of another version; start the job again") from error
    return Job(folder, manifest)


def _list_inputs(target: Path | None, inputs: Iterable[Reference], size: int) -> tuple[str, int]:
    """Compute fingerprint and number of the inputs; with a target also write them, one row group per shard."""
    arrow, parquet = require("pyarrow", "core"), require("pyarrow.parquet", "core")
    schema = arrow.schema([("path", arrow.string()), ("offset", arrow.int64()), ("size", arrow.int64())])
    digest, photos = hashlib.sha256(), 0

    def parts() -> Iterator[list[Reference]]:
        nonlocal photos
        rows = iter(inputs)
        while part := list(islice(rows, size)):
            digest.update("".join(f"{path}\0{offset}\0{length}\n" for path, offset, length in part).encode())
            photos += len(part)
            yield part

    if target is None:
        for _ in parts():
            pass
    else:
        with (
            atomic_path(target) as partial,
            parquet.ParquetWriter(partial, schema, compression="zstd", write_page_checksum=True) as writer,
        ):
            for part in parts():
                columns = [list(column) for column in zip(*part, strict=True)]
                writer.write_table(arrow.table(columns, schema=schema), row_group_size=size)
    return digest.hexdigest(), photos


def model_identity(predictor: Predictor, options: ModelOptions) -> str:
    """Hash what a model's outputs depend on: its card, and its files if it is not part of the package."""
    digest = hashlib.sha256(predictor.card.model_copy(update={"model": ""}).to_json().encode())
    path = Path(options.spec)
    files: list[Path] = []
    if path.suffix in SUFFIXES:
        files += [path, *(bin for bin in [path.with_suffix(".bin")] if bin.is_file())]
    elif not is_zero_shot(options.spec):
        files.append(bundle_path(options.spec) / JSON_FILE)  # includes the hashes of weights and backbone
    elif (backbone := options.spec.partition(":")[2]) not in ("", *LITE_BACKBONES):
        files += source_files(backbone, options.checkpoint)
    for file in files:
        digest.update(sha256_file(file).encode())
    return digest.hexdigest()


def _difference(before: Manifest, now: Manifest) -> str:
    if before.fingerprint != now.fingerprint:
        if before.photos == now.photos:
            return f"its {before.photos:,} photos have other paths or another order; from {listed(before.source, 3)}"
        return f"its {before.photos:,} photos are not these {now.photos:,}"
    if before.model != now.model:
        return f"its model was {before.options.model.spec}"
    for name in ("threshold", "embedding", "dedupe", "shard_size", "lenient"):
        if getattr(before.options, name) != getattr(now.options, name):
            return f"its {name} was {getattr(before.options, name)}"
    return "its thresholds differ"
