"""`intclip batch`."""

import sys
from contextlib import redirect_stdout
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intclip.cli.predict import Checkpoint, Device, Labels, Model, Precision, PrecisionOption, Sentences

if TYPE_CHECKING:
    from intclip.batch.job import ModelOptions


class BatchEngine(StrEnum):
    """Who works."""

    local = "local"
    ray = "ray"


class Dedupe(StrEnum):
    """Which photos count as the same."""

    off = "off"
    content = "content"
    perceptual = "perceptual"


Compute = Annotated[str, typer.Option("--compute", help="Library that computes: auto, torch, openvino or onnx.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="local: threads that read photos; ray: worker processes of one core each.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Photos computed at once.")]
EngineChoice = Annotated[BatchEngine, typer.Option("--engine", help="This process, or Ray's workers.")]


def batch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="Folders, quoted patterns, .txt lists, tables (.csv, .jsonl, .parquet), WebDataset .tar files; here "
            "or at an address such as s3://bucket/photos/.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The job's folder.")] = None,
    engine: EngineChoice = BatchEngine.local,
    model: Model = "lite",
    embedding: Annotated[bool, typer.Option("--embedding", help="Keep each photo's embedding.")] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="A label holds from this probability on; else the model's own.")
    ] = None,
    dedupe: Annotated[
        Dedupe, typer.Option(help="Mark photos of equal bytes (content) or of equal looks too (perceptual).")
    ] = Dedupe.off,
    status: Annotated[bool, typer.Option("--status", help="Tell how far the job is, and leave.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prove that every photo has exactly one row; mend damaged shards first.")
    ] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do shards again that hold photos which could not be read.")
    ] = False,
    taxonomy: Labels = None,
    sentences: Sentences = "11-15",
    checkpoint: Checkpoint = None,
    compute: Compute = "auto",
    device: Device = "auto",
    precision: PrecisionOption = Precision.f32,
    batch_size: BatchSize = 32,
    shard_size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Photos in a Parquet shard.")] = 2048,
    workers: Workers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Predict any number of photos into Parquet shards.

    Stopped at any moment, the same command goes on with the shards that are missing. Photos that cannot be read become
    rows with an error. Columns of a shard: row, path, probabilities, labels, error, and embedding where it was asked
    for; the names of the probabilities stand in manifest.json.

    Examples:

    intclip batch photos/ --out intents

    intclip batch 'shards/*.tar' --out intents --engine ray --workers 16

    intclip batch s3://bucket/photos/ --out intents --embedding --dedupe content

    intclip batch --out intents --status

    intclip batch --out intents --verify
    """
    from dataclasses import asdict

    from intclip.batch.check import read_status, verify_job
    from intclip.batch.job import JobOptions, plan_job, read_job
    from intclip.batch.run import run_job
    from intclip.cli.common import progress_bar
    from intclip.errors import IntclipError

    if out is None:
        raise IntclipError("name the job's folder: --out DIR")
    if status:
        _print(read_status(out), as_json, _status_lines)
        return
    told: dict[str, Any] = {"out": str(out)}
    if sources:
        options = JobOptions(
            model=model_options(model, taxonomy, sentences, checkpoint, compute, device, precision),
            threshold=threshold,
            embedding=embedding,
            dedupe=dedupe.value,
            batch_size=batch_size,
            shard_size=shard_size,
        )
        job = plan_job(out, sources, options)
        # Ray tells of workers that died on standard output, which is the report's.
        with redirect_stdout(sys.stderr), progress_bar("predicting") as report:
            summary = run_job(
                job,
                engine=engine.value,
                workers=workers,
                retry_errors=retry_errors,
                check=verify,
                on_progress=report,
            )
        told |= asdict(summary)
    elif not verify:
        raise IntclipError("name the photos: intclip batch SOURCE --out DIR; or ask with --status or --verify")
    else:
        job = read_job(out)
    if verify:
        told |= {"verified": asdict(verify_job(job))}
    _print(told, as_json, _summary_lines)


def model_options(
    model: str,
    taxonomy: str | None,
    sentences: str,
    checkpoint: Path | None,
    compute: str,
    device: str,
    precision: Precision,
) -> "ModelOptions":
    """The model of a job, as its manifest keeps it."""
    from intclip.batch.job import ModelOptions

    return ModelOptions(
        spec=model,
        taxonomy=taxonomy,
        sentences=sentences,
        checkpoint=None if checkpoint is None else str(checkpoint),
        engine=compute,
        device=device,
        precision=precision.value,
    )


def _print(content: dict[str, Any], as_json: bool, lines: Any) -> None:
    if as_json:
        import json

        print(json.dumps(content, ensure_ascii=False))
        return
    print("\n".join(lines(content)), file=sys.stdout)


def _status_lines(status: dict[str, Any]) -> list[str]:
    lines = [
        f"{status['state']}: {status['done']:,} of {status['photos']:,} photos, {status['shards_done']} of "
        f"{status['shards']} shards; {status['errors']:,} photos could not be read"
    ]
    if status["photos_per_second"]:
        left = "" if status["seconds_left"] is None else f", {_duration(status['seconds_left'])} left"
        lines.append(f"{status['photos_per_second']:,.1f} photos/s{left}")
    return lines


def _summary_lines(told: dict[str, Any]) -> list[str]:
    lines = []
    if "photos" in told:
        rate = told["computed"] / told["seconds"] if told["computed"] else 0
        lines.append(
            f"{told['out']}: {told['photos']:,} photos, {told['computed']:,} of them now"
            + (f" in {_duration(told['seconds'])} ({rate:,.1f} photos/s)" if told["computed"] else "")
            + f"; {told['errors']:,} could not be read"
        )
        lines += [f"{count:,} repeat another ({kind})" for kind, count in told["duplicates"].items() if count]
    if "verified" in told:
        found = told["verified"]
        lines.append(f"verified: {found['photos']:,} photos, each in exactly one row of {found['shards']} shards")
    return lines


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
