"""`intclip describe`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, writable_file


def describe(
    photos: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns, .txt lists of paths.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of a vision-language model at the endpoint.")],
    out: Annotated[
        Path, typer.Option(callback=writable_file, help="Table to write: .jsonl or .csv with columns image and text.")
    ],
    base_url: Annotated[
        str | None, typer.Option("--base-url", help="Such as http://localhost:11434/v1; default: $OPENAI_BASE_URL.")
    ] = None,
    taxonomy: Annotated[
        str | None, typer.Option(help="Include these labels in the prompt; do not evaluate them on such descriptions.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Folder of cached answers; default: OUT.cache.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Parallel requests.")] = 4,
    prices: Annotated[
        tuple[float, float],
        typer.Option(metavar="PROMPT ANSWER", help="Prices per million tokens of prompt and answer."),
    ] = (0.0, 0.0),
    max_cost: Annotated[float | None, typer.Option(min=0, help="Cost limit; needs --prices.")] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Timeout of a request in seconds.")] = 60,
    yes: Annotated[bool, typer.Option("--yes", help="Agree to send the photos.")] = False,
    as_json: AsJson = False,
) -> None:
    """Describe each photo with a vision-language model.

    Descriptions cover content, mood and likely purpose. Photos are sent to the endpoint. The command first prints
    what it would send, and sends nothing without --yes unless the server runs on this machine. Answers are cached by
    photo and prompt: run again to continue.

    export OPENAI_BASE_URL=http://localhost:11434/v1

    intclip describe photos/ --model llava --out posts.jsonl

    intclip fit posts.jsonl --out models/mine  # after adding a column labels
    """
    from intclip.cli.common import print_json, print_written, progress_bar
    from intclip.data.describing import Price, describe_photos, is_local, photo_prompt, privacy_statement
    from intclip.data.images import find_images
    from intclip.errors import IntclipError, StorageError
    from intclip.files import is_stream
    from intclip.labels.llm import ChatClient, Retries

    if out.suffix not in (".jsonl", ".csv") and not is_stream(out):
        raise StorageError(f"{out}: name a .jsonl or .csv file")
    if max_cost is not None and prices == (0.0, 0.0):
        raise IntclipError("--max-cost needs --prices PROMPT ANSWER, the endpoint's prices per million tokens")
    if out.is_file():
        _check_own(out)
    labels: list[str] = []
    if taxonomy is not None:
        from intclip.labels import load_taxonomy

        labels = list(load_taxonomy(taxonomy).names)
    paths = [str(path) for path in find_images(photos)]
    folder = cache or (Path("descriptions.cache") if is_stream(out) else out.with_name(f"{out.name}.cache"))
    client = ChatClient(model, base_url=base_url, cache=folder, timeout=timeout, retries=Retries())
    if not is_local(client.endpoint):
        print(privacy_statement(len(paths), client.endpoint, model), file=sys.stderr)
        if not yes:
            raise IntclipError("nothing was sent; add --yes if you agree")
    price = Price.from_tokens(*prices, max_cost)
    found = []
    try:
        with progress_bar("describing") as bar:
            for done, one in enumerate(
                describe_photos(paths, client, prompt=photo_prompt(labels), workers=workers, price=price), start=1
            ):
                found.append(one)
                if bar is not None:
                    bar(done, len(paths))
    finally:
        client.close()
        # Also after an interruption: paid answers are kept, and the cache continues from them.
        rows = [{"image": one.photo, "text": one.text} for one in found if one.error is None]
        if rows:
            _write(out, rows)
    failed = [one for one in found if one.error is not None]
    fresh = sum(one.answer is not None and not one.answer.cached for one in found)
    if as_json:
        facts = {"out": str(out) if rows else None, "described": len(rows), "asked": fresh, "cached": len(rows) - fresh}
        errors = {one.photo: one.error for one in failed}
        print_json(facts | {"cost_at_most": fresh * price.per_photo, "errors": errors})
    elif rows:
        cost = f", at most {fresh * price.per_photo:.4f} spent" if price.per_photo else ""
        print_written(out, f"{len(rows)} descriptions, {len(rows) - fresh} of them from the cache{cost}")
    if failed:
        kept = "" if rows else f"; {out} was not written"
        raise IntclipError(
            f"{len(failed)} of {len(paths)} photos were not described{kept}; the first: {failed[0].error}"
        )


def _check_own(out: Path) -> None:
    """Raise if overwriting a table would lose columns that its user added, such as labels."""
    from intclip.data.tables import read_rows
    from intclip.errors import StorageError, listed

    added = {name: None for row in read_rows(out) for name in (*row.known, *row.other) if name not in ("image", "text")}
    if added:
        raise StorageError(f"{out} has other columns ({listed(added)}); choose another --out to keep it")


def _write(out: Path, rows: list[dict[str, str]]) -> None:
    """Write the table atomically; paths of photos below its folder are relative to it."""
    import csv
    import io
    import json

    from intclip.files import write_text

    base = out.absolute().parent
    for row in rows:
        photo = Path(row["image"]).absolute()
        row["image"] = str(photo.relative_to(base) if photo.is_relative_to(base) else photo)
    if out.suffix != ".csv":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    stream = io.StringIO(newline="")
    table = csv.DictWriter(stream, ["image", "text"])
    table.writeheader()
    table.writerows(rows)
    write_text(out, stream.getvalue())
