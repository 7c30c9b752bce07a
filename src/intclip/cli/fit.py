"""`intclip fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.options import AsJson, DataOptions, DataRoot, Overwrite, ReadText, replaceable_folder

if TYPE_CHECKING:
    from intclip.training.fitting import Fitted


def fit(
    data: Annotated[str, typer.Argument(help="A .csv, .jsonl or .parquet file, or the name of a dataset.")],
    out: Annotated[
        Path, typer.Option(callback=replaceable_folder, help="Output folder for the model and its metrics.")
    ],
    taxonomy: Annotated[
        str | None,
        typer.Option(help="Labels with sentences: a built-in name or a YAML file; default: labels in the data."),
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to fit on; default: train; may be repeated.")] = None,
    channel: Annotated[list[str] | None, typer.Option(help="text or image; default: both; may be repeated.")] = None,
    backbone: Annotated[str, typer.Option(help="Backbone for the photos.")] = "lite",
    text_encoder: Annotated[
        str, typer.Option(help="minilm, backbone (its text tower), or the folder of a sentence-transformers model.")
    ] = "minilm",
    head: Annotated[
        str | None,
        typer.Option(help="Use this head: anchors, prototypes, ridge, logistic, svm, kernel, graph, ensemble."),
    ] = None,
    folds: Annotated[int, typer.Option(min=0, help="Folds of the nested cross-validation; 0 skips it.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the folds.")] = 0,
    data_root: DataRoot = None,
    options: DataOptions = None,
    read_text: ReadText = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Train on a few hundred labelled posts: photos, text, or both.

    Compares heads by cross-validation, keeps the best, tunes its thresholds, and reports its accuracy on
    unseen posts. Columns: image, text, labels (separated by ";"); image or text alone is enough.

    intclip fit posts.csv --out models/mine

    intclip fit posts.jsonl --taxonomy intentonomy --out models/mine
    """
    from intclip.cli.common import load_named_dataset, parse_options, print_json, progress_bar
    from intclip.errors import IntclipError, StorageError
    from intclip.methods.post_heads.model import PostHeadsOptions
    from intclip.methods.post_heads.selection import ANCHORS, ENSEMBLE
    from intclip.methods.post_heads.solver import GRIDS
    from intclip.training.fitting import fit_dataset, write_fitted

    known = (ANCHORS, *GRIDS, ENSEMBLE)
    if head is not None and head not in known:
        raise IntclipError(f"unknown head {head!r}: choose one of {', '.join(known)}")
    if wrong := set(channel or ()) - {"text", "image"}:
        raise IntclipError(f"unknown channel {min(wrong)!r}: choose text or image")
    if folds == 1:
        raise IntclipError("--folds 1 holds out nothing: choose 0, or at least 2")
    if out.exists() and not overwrite:
        raise StorageError(f"{out} exists; choose another folder or add --overwrite")
    given = [*(options or []), *([] if taxonomy is None else [f"taxonomy={taxonomy}"])]
    dataset = load_named_dataset(data, data_root, given)
    if read_text:
        from intclip.data.ocr import add_words_to

        with progress_bar("reading text in pictures") as bar:
            tell = None if bar is None else lambda _, done, total: bar(done, total)
            dataset = add_words_to(dataset, split or ["train"], tell)
    settings = {"channels": channel or ["image", "text"], "text_encoder": text_encoder, "head": head, "seed": seed}
    with progress_bar("fitting") as bar:
        fitted = fit_dataset(
            dataset,
            PostHeadsOptions.model_validate(settings),
            splits=split or ["train"],
            backbone=backbone,
            folds=folds,
            progress=None if bar is None else lambda _, done, total: bar(done, total),
        )
    place = {"name": data, "root": data_root, "options": parse_options(given)}
    write_fitted(fitted, out, data=place, overwrite=overwrite)
    if as_json:
        facts = {"out": str(out), "posts": len(fitted.ids), "labels": len(dataset.taxonomy)}
        print_json(facts | fitted.metrics() | {"seconds": fitted.seconds})
        return
    _print(fitted, out)


def _print(fitted: "Fitted", out: Path) -> None:
    from intclip.cli.common import print_table

    for name, choice in fitted.heads.choices.items():
        votes = ", ".join(f"{head} {share:.0%}" for head, share in sorted(choice.votes.items(), key=lambda v: -v[1]))
        print(f"{name}: {next(iter(choice.ranking))} ranks first of {len(choice.ranking)} heads; votes: {votes}")
    print()
    figures = {mode: fitted.figures(mode) for mode in fitted.reports}
    if figures:
        keys = list(next(iter(figures.values())))
        rows = [
            [mode, *(f"{100 * m[k]['value']:.1f} [{100 * m[k]['low']:.1f}, {100 * m[k]['high']:.1f}]" for k in keys)]
            for mode, m in figures.items()
        ]
        print("held out by nested cross-validation, in percent, with 95 % intervals:")
        print_table(["reads", *keys], rows)
    spent = ", ".join(f"{stage} {time:.1f} s" for stage, time in fitted.seconds.items())
    print(f"{out}: {len(fitted.ids)} posts, {len(fitted.dataset.taxonomy)} labels ({spent})")
