"""`intclip report`: a folder of photos as one HTML page."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    photos: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns, .txt lists of paths.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    model: Annotated[
        str, typer.Option("--model", "-m", help="lite, proxy, a bundle's folder, an exported file, …")
    ] = "lite",
    taxonomy: Annotated[str | None, typer.Option(help="Labels of a zero-shot model: a name or a YAML file.")] = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Why these photos were taken",
    sentences: Annotated[str, typer.Option(help="Words of a label in a zero-shot model.")] = "11-15",
) -> None:
    """Write photos, their intents by level and the evidence for them as one page that needs no network.

    intclip report holiday/ --out holiday.html
    """
    from intclip.data.images import find_images
    from intclip.errors import IntclipError
    from intclip.explain.report import write_folder_report
    from intclip.inference.loading import load

    paths = find_images(photos)
    failures = write_folder_report(paths, load(model, taxonomy=taxonomy, sentences=sentences), out, title=title)
    print(f"{out}: {len(paths) - len(failures)} photos, {out.stat().st_size / 1e6:.1f} MB")
    if failures:
        for failure in failures:
            print(f"  {failure}", file=sys.stderr)
        raise IntclipError(f"{len(failures)} of {len(paths)} photos could not be read; all others are in the report")
