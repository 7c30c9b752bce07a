"""`intclip index` and `intclip search`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.batch import Runner
from intclip.cli.options import AsJson, ModelChoice, Reading, with_options, writable_folder

_SHOWN = 3


@with_options
def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…", help="As for `intclip batch`, or the folder of a finished batch job with embeddings."
        ),
    ],
    out: Annotated[Path, typer.Option(callback=writable_folder, help="Folder of the index.")],
    add: Annotated[bool, typer.Option("--add", help="Keep indexed photos that are not in SOURCE.")] = False,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Retry photos that could not be read.")] = False,
    runner: Runner = "local",
    as_json: AsJson = False,
    *,
    choice: ModelChoice,
    reading: Reading,
) -> None:
    """Index photos for `intclip search`.

    Stores embeddings and the probabilities of intents. Run it again after adding, changing or removing photos: only
    new and changed ones are computed. If interrupted, repeat the command to continue.

    Examples:

    intclip index photos/ --out photos.index

    intclip index more/ --out photos.index --add

    intclip index intents/ --out photos.index  # a batch job
    """
    from dataclasses import asdict
    from functools import partial

    from intclip.batch.job import JobOptions
    from intclip.batch.run import run_job
    from intclip.cli.common import print_json, progress_bar
    from intclip.search.index import update_index

    with progress_bar("indexing") as report:
        found = update_index(
            out,
            sources,
            JobOptions(model=choice.options(), batch_size=reading.batch_size, lenient=reading.lenient),
            add=add,
            retry_errors=retry_errors,
            exclude=reading.exclude or (),
            run=partial(run_job, runner=runner, workers=reading.workers, on_progress=report),
        )
    if as_json:
        print_json(asdict(found))
        return
    print(
        f"{out}: {found.photos:,} photos ({found.computed:,} new or changed, {found.kept:,} kept, "
        f"{found.removed:,} removed); {found.errors:,} could not be read"
    )


def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the index.")],
    text: Annotated[str | None, typer.Option(help="Find photos by a sentence.")] = None,
    photo: Annotated[str | None, typer.Option(help="Find photos similar to this one, indexed or not.")] = None,
    intent: Annotated[str | None, typer.Option(help="Find photos with a high probability of this label.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help='Only photos such as "Natural beauty>0.5" or "Enjoy life" (at its threshold); may be repeated.'
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of results.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find photos in an index by a sentence, a photo or an intent.

    Examples:

    intclip search photos.index --text "children play on the beach"

    intclip search photos.index --photo sunset.jpg --where "Natural beauty>0.6"

    intclip search photos.index --intent "Enjoy life" --where "In love<0.3"
    """
    from intclip.cli.common import print_json, printable
    from intclip.errors import IntclipError
    from intclip.search.query import PhotoIndex

    if sum(value is not None for value in (text, photo, intent)) != 1:
        raise IntclipError("give one of --text SENTENCE, --photo FILE and --intent NAME")
    index = PhotoIndex(folder)
    filters = where or []
    if text is not None:
        hits = index.by_text(text, where=filters, top=top)
    elif photo is not None:
        hits = index.by_photo(photo, where=filters, top=top)
    else:
        hits = index.by_intent(intent or "", where=filters, top=top)
    names = index.taxonomy.names
    if as_json:
        rows = [
            {"path": h.path, "score": h.score, "scores": dict(zip(names, h.probabilities.tolist(), strict=True))}
            for h in hits
        ]
        print_json(rows)
        return
    for hit in hits:
        best = (-hit.probabilities).argsort(kind="stable")[:_SHOWN]
        intents = ", ".join(f"{names[k]} {hit.probabilities[k]:.2f}" for k in best)
        print(f"{hit.score:6.3f}  {printable(hit.path)}  {intents}")
    if not hits:
        print("no photo matches the filters")
