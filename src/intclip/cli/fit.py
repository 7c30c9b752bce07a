"""`intclip fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from intclip.inference.fitting import Fitted


def fit(
    data: Annotated[str, typer.Argument(help="A .csv, .jsonl or .parquet file, or a dataset's name.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle to write.")],
    taxonomy: Annotated[
        str | None, typer.Option(help="Labels with sentences: a built-in name or a YAML file; else those found.")
    ] = None,
    split: Annotated[
        list[str] | None, typer.Option(help="Splits to fit on; train by default. May be repeated.")
    ] = None,
    channel: Annotated[
        list[str] | None, typer.Option(help="text or image; both where they are there. May be repeated.")
    ] = None,
    backbone: Annotated[str, typer.Option(help="Of the photos.")] = "lite",
    text_encoder: Annotated[
        str, typer.Option(help="minilm, backbone (its text tower), or a sentence-transformers model's folder.")
    ] = "minilm",
    head: Annotated[
        str | None,
        typer.Option(help="Take this head: anchors, prototypes, ridge, logistic, svm, kernel, graph, ensemble."),
    ] = None,
    folds: Annotated[int, typer.Option(min=0, help="Of the nested cross-validation; 0 leaves its figures out.")] = 5,
    seed: Annotated[int, typer.Option(help="Of the folds.")] = 0,
    root: Annotated[Path | None, typer.Option(help="Where a named dataset lies.")] = None,
    options: Annotated[list[str] | None, typer.Option("--set", help="Option key=value of the dataset.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Learn from some hundred labelled posts: photos, words, or both.

    Tries every head by cross-validation, takes the best, tunes its thresholds, and tells how good it is on posts it has
    not seen. Columns: image, text, labels (separated by ";"); one of image and text is enough.

    intclip fit posts.csv --out models/mine

    intclip fit posts.jsonl --taxonomy intentonomy --out models/mine
    """
    import json

    from intclip.cli.common import load_named_dataset, parse_options, progress_bar
    from intclip.errors import IntclipError, StorageError
    from intclip.inference.fitting import fit_dataset, write_fitted
    from intclip.posts.heads import GRIDS
    from intclip.posts.selection import ANCHORS, ENSEMBLE

    known = (ANCHORS, *GRIDS, ENSEMBLE)
    if head is not None and head not in known:
        raise IntclipError(f"no head {head!r}: choose one of {', '.join(known)}")
    if wrong := set(channel or ()) - {"text", "image"}:
        raise IntclipError(f"no channel {min(wrong)!r}: choose text or image")
    if folds == 1:
        raise IntclipError("--folds 1 holds nothing out: choose 0, or 2 and more")
    if out.exists() and not overwrite:
        raise StorageError(f"{out} exists; choose another folder or add --overwrite")
    if taxonomy is not None:
        parse_options(options)
        options = [*(options or []), f"taxonomy={taxonomy}"]
    dataset = load_named_dataset(data, root, options)
    with progress_bar("fitting") as bar:
        fitted = fit_dataset(
            dataset,
            splits=split or ["train"],
            backbone=backbone,
            encoder=text_encoder,
            channels=channel or ["text", "image"],
            folds=folds,
            seed=seed,
            head=head,
            report=None if bar is None else lambda _, done, total: bar(done, total),
        )
    write_fitted(fitted, out, overwrite=overwrite)
    if as_json:
        channels = fitted.bundle.model.channels
        facts = {
            "out": str(out),
            "posts": fitted.posts,
            "labels": len(dataset.taxonomy),
            "heads": {name: {"votes": dict(c.votes), "inner_mAP": dict(c.ranking)} for name, c in channels.items()},
            "metrics": fitted.metrics,
            "seconds": fitted.seconds,
        }
        print(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    _print(fitted, out)


def _print(fitted: "Fitted", out: Path) -> None:
    from intclip.cli.common import print_table

    for name, channel in fitted.bundle.model.channels.items():
        votes = ", ".join(f"{head} {share:.0%}" for head, share in sorted(channel.votes.items(), key=lambda v: -v[1]))
        print(f"{name}: {next(iter(channel.ranking))} ranks best of {len(channel.ranking)} heads; votes: {votes}")
    print()
    if fitted.metrics:
        keys = list(next(iter(fitted.metrics.values())))
        rows = [
            [mode, *(f"{100 * m[k]['value']:.1f} [{100 * m[k]['low']:.1f}, {100 * m[k]['high']:.1f}]" for k in keys)]
            for mode, m in fitted.metrics.items()
        ]
        print("held out by nested cross-validation, percent, with 95 % intervals:")
        print_table(["reads", *keys], rows)
    spent = ", ".join(f"{stage} {time:.1f} s" for stage, time in fitted.seconds.items())
    print(f"{out}: {fitted.posts} posts, {len(fitted.bundle.model.taxonomy)} labels ({spent})")
