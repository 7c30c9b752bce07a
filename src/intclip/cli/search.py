"""`intclip index` and `intclip search`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.batch import Runner
from intclip.cli.options import AsJson, ModelChoice, Reading, with_options

_SHOWN = 3


@with_options
def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE…",
            help="As for `intclip batch`; or the folder of a finished batch job that kept embeddings.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The index's folder.")],
    add: Annotated[bool, typer.Option("--add", help="Keep indexed photos that SOURCE does not name.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Read photos again that could not be read.")
    ] = False,
    runner: Runner = "local",
    as_json: AsJson = False,
    *,
    choice: ModelChoice,
    reading: Reading,
) -> None:
    """Index photos for `intclip search`: their embeddings and the probabilities of their intents.

    Run it again after photos were added, changed or removed: only new and changed ones are computed. If it is stopped,
    the same command continues.

    Examples:

    intclip index photos/ --out photos.index

    intclip index more/ --out photos.index --add

    intclip index intents/ --out photos.index  # a batch job: nothing is computed
    """
    import json
    from dataclasses import asdict

    from intclip.cli.common import progress_bar
    from intclip.search.index import update_index

    with progress_bar("indexing") as report:
        found = update_index(
            out,
            sources,
            choice.options(),
            add=add,
            retry_errors=retry_errors,
            exclude=reading.exclude or (),
            lenient=reading.lenient,
            runner=runner,
            workers=reading.workers,
            batch_size=reading.batch_size,
            on_progress=report,
        )
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(
        f"{out}: {found.photos:,} photos ({found.computed:,} new or changed, {found.kept:,} kept, "
        f"{found.removed:,} removed); {found.errors:,} could not be read"
    )


def search(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The index's folder.")],
    text: Annotated[str | None, typer.Option(help="A sentence.")] = None,
    photo: Annotated[str | None, typer.Option(help="A photo; it need not be indexed.")] = None,
    intent: Annotated[str | None, typer.Option(help="A label's name: by its probability.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help='Only photos such as "Natural beauty>0.5" or "Enjoy life" (at its threshold); repeatable.'),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Photos shown.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, an object a photo.")] = False,
) -> None:
    """Find photos of an index by a sentence, by a photo or by an intent.

    Examples:

    intclip search photos.index --text "children play on the beach"

    intclip search photos.index --photo sunset.jpg --where "Natural beauty>0.6"

    intclip search photos.index --intent "Enjoy life" --where "In love<0.3"
    """
    import json

    from intclip.cli.common import printable
    from intclip.errors import IntclipError
    from intclip.search.query import PhotoIndex

    if sum(value is not None for value in (text, photo, intent)) != 1:
        raise IntclipError("ask one thing: --text SENTENCE, --photo FILE or --intent NAME")
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
        print(json.dumps(rows, ensure_ascii=False))
        return
    for hit in hits:
        best = (-hit.probabilities).argsort(kind="stable")[:_SHOWN]
        intents = ", ".join(f"{names[k]} {hit.probabilities[k]:.2f}" for k in best)
        print(f"{hit.score:6.3f}  {printable(hit.path)}  {intents}")
    if not hits:
        print("no photo meets the filters")
