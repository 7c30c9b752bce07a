"""`intclip batch`."""

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from intclip.cli.options import AsJson, ModelChoice, Reading, Threshold, with_options

Dedupe = Literal["off", "content", "perceptual"]
Runner = Annotated[Literal["local", "ray"], typer.Option("--runner", help="Run in this process or on Ray.")]


@dataclass(frozen=True)
class JobOutputs:
    """What a job computes and stores."""

    embedding: Annotated[bool, typer.Option("--embedding", help="Store each photo's embedding.")] = False
    threshold: Threshold = None
    dedupe: Annotated[
        Dedupe, typer.Option(help="Mark exact duplicates (content), or near duplicates too (perceptual).")
    ] = "off"
    shard_size: Annotated[int, typer.Option(min=1, max=1_000_000, help="Photos in a Parquet shard.")] = 2048


@dataclass(frozen=True)
class JobActions:
    """What to do with an existing job."""

    status: Annotated[bool, typer.Option("--status", help="Print the job's progress and exit.")] = False
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Repair damaged shards, then check that every photo has exactly one row."),
    ] = False
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Recompute shards with unreadable photos.")] = (
        False
    )


@with_options
def batch(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE…",
            help="Folders, quoted patterns, .txt lists, tables (.csv, .jsonl, .parquet), WebDataset .tar files; local "
            "or at a URL such as s3://bucket/photos/; - reads a list from standard input.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder.")] = None,
    runner: Runner = "local",
    as_json: AsJson = False,
    *,
    choice: ModelChoice,
    stored: JobOutputs,
    actions: JobActions,
    reading: Reading,
) -> None:
    """Predict any number of photos into Parquet shards.

    If interrupted, repeat the command to compute the missing shards. Photos that cannot be read become
    rows with an error; if none can be read, the exit code is 2. Columns of a shard: row, path, probabilities, labels,
    error, and with --embedding embedding; manifest.json has the names of the probabilities.

    Examples:

    intclip batch photos/ --out intents

    intclip batch 'shards/*.tar' --out intents --runner ray --workers 16

    intclip batch s3://bucket/photos/ --out intents --embedding --dedupe content

    intclip batch --out intents --status

    intclip batch --out intents --verify
    """
    from dataclasses import asdict

    from intclip.batch.check import read_status, verify_job
    from intclip.batch.job import JobOptions, plan_job, read_job
    from intclip.batch.references import references
    from intclip.batch.run import run_job
    from intclip.cli.common import progress_bar
    from intclip.errors import IntclipError

    if out is None:
        raise IntclipError("give the output folder: --out DIR")
    if actions.status:
        _print(read_status(out), as_json, _status_lines)
        return
    found: dict[str, Any] = {"out": str(out)}
    if sources:
        options = JobOptions(
            model=choice.options(), **asdict(stored), batch_size=reading.batch_size, lenient=reading.lenient
        )
        job = plan_job(out, sources, options, inputs=references(sources, exclude=reading.exclude or ()))
        # Ray prints to standard output when workers die, which would corrupt the report.
        with redirect_stdout(sys.stderr), progress_bar("predicting") as report:
            summary = run_job(
                job,
                runner=runner,
                workers=reading.workers,
                retry_errors=actions.retry_errors,
                check=actions.verify,
                on_progress=report,
            )
        found |= asdict(summary)
    elif not actions.verify:
        raise IntclipError("give the photos: intclip batch SOURCE --out DIR; or use --status or --verify")
    else:
        job = read_job(out)
    if actions.verify:
        found |= {"verified": asdict(verify_job(job))}
    _print(found, as_json, _summary_lines)
    if found.get("photos") and found["errors"] == found["photos"]:
        raise IntclipError(f"none of the {found['photos']:,} photos could be read; {out / 'shards'} has the reasons")


def _print(content: dict[str, Any], as_json: bool, lines: Any) -> None:
    if as_json:
        from intclip.cli.common import print_json

        print_json(content)
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


def _summary_lines(found: dict[str, Any]) -> list[str]:
    lines = []
    if "photos" in found:
        rate = found["computed"] / found["seconds"] if found["computed"] else 0
        lines.append(
            f"{found['out']}: {found['photos']:,} photos, {found['computed']:,} computed now"
            + (f" in {_duration(found['seconds'])} ({rate:,.1f} photos/s)" if found["computed"] else "")
            + f"; {found['errors']:,} could not be read"
        )
        lines += [f"{count:,} duplicates ({kind})" for kind, count in found["duplicates"].items() if count]
    if "verified" in found:
        checked = found["verified"]
        lines.append(f"verified: {checked['photos']:,} photos, each in exactly one row of {checked['shards']} shards")
    return lines


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
