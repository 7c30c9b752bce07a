"""`intclip evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, Checkpoint, DataOptions, DataRoot, Device, EngineOption, writable_folder


def evaluate(
    model: Annotated[
        str,
        typer.Argument(help="A run or bundle folder, proxy, lite, zero-shot:RN101, an exported file, hf://owner/name."),
    ],
    data: Annotated[
        str | None, typer.Option(help="Dataset: a name, a table, or a folder; default: the training dataset.")
    ] = None,
    data_root: DataRoot = None,
    options: DataOptions = None,
    split: Annotated[
        str | None, typer.Option(help="Split to score; default: the training's test split, else test.")
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(help="A number for all labels, or a split to tune on (not the scored one); default: the model's."),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Tune one threshold per label, on the split given by --thresholds.")
    ] = False,
    positive_share: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Smallest share of votes of a positive label; default: the training's, else the dataset's.",
        ),
    ] = None,
    taxonomy: Annotated[str | None, typer.Option(help="Labels of a zero-shot model; default: the dataset's.")] = None,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also score compressed, blurred, noisy, small photos and screenshots.")
    ] = False,
    bootstrap: Annotated[int, typer.Option(min=0, help="Bootstrap draws for the 95 % intervals; 0 for none.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Also write report and predictions into this folder.")
    ] = None,
    as_json: AsJson = False,
    checkpoint: Checkpoint = None,
    engine: EngineOption = "auto",
    device: Device = "auto",
) -> None:
    """Score a model on a labelled split.

    Reports macro, micro and samples F1, mAP, the figures of every class, and 95 % intervals. Thresholds are the
    model's (tuned on validation during training), a number, or tuned on another split, never on the scored one.

    --corruptions scores the split 25 more times: JPEG, blur, noise, downscaling and screenshots at five
    strengths each. With --out it writes corruptions-SPLIT.json, .md and .png.

    Examples:

    intclip evaluate runs/proxy --data-root flickr8k

    intclip evaluate lite --data intentonomy --thresholds val

    intclip evaluate runs/mine --data photos.csv --set missing=skip --out report

    intclip evaluate runs/proxy --corruptions --out report
    """
    import json
    from dataclasses import replace

    from intclip.cli.common import parse_options, print_json
    from intclip.data.registry import DATASETS, KINDS, load_dataset
    from intclip.errors import DatasetError, RecipeError
    from intclip.evaluation.corruptions import corruption_curves, draw_curves, render_curves
    from intclip.evaluation.evaluate import evaluate as score
    from intclip.evaluation.report import render, write_predictions, write_report
    from intclip.files import write_text
    from intclip.inference.bundle import load_bundle
    from intclip.inference.loading import bundle_path, is_zero_shot, load

    levels = _number(thresholds)
    if per_class and not isinstance(levels, str):
        raise RecipeError("--per-class tunes thresholds; name the split to tune them on, such as --thresholds val")
    zero_shot = is_zero_shot(model)
    trained: dict[str, object] = {}
    if data is None:
        recipe = None if zero_shot or Path(model).suffix else load_bundle(bundle_path(model)).info.recipe
        if recipe is None:
            raise DatasetError(f"{model} does not record its training dataset; choose one with --data")
        data, trained = recipe["data"]["name"], recipe["data"]["options"]
        split = split or recipe["data"]["test"]
        positive_share = recipe["data"]["positive_share"] if positive_share is None else positive_share
    split = split or "test"
    chosen = trained | parse_options(options)
    dataset = load_dataset(data, data_root, **chosen)
    labels = taxonomy or (replace(dataset.taxonomy, exclusive=dataset.task == "singlelabel") if zero_shot else None)
    predictor = load(model, taxonomy=labels, engine=engine, device=device, checkpoint=checkpoint)
    own_files = data not in DATASETS or data in KINDS
    if own_files and "taxonomy" not in chosen and set(dataset.taxonomy.names) < set(predictor.taxonomy.names):
        # Your own files contain only labels that occur; the model may know more.
        dataset = load_dataset(data, data_root, **chosen, taxonomy=predictor.taxonomy)
    if positive_share is not None:
        dataset = replace(dataset, positive_share=positive_share)
    result = score(predictor, dataset, split, thresholds=levels, per_class=per_class, draws=bootstrap)
    title = f"{model} on {dataset.name}, {split}"
    if out is not None:
        write_report(out, f"report-{split}", result.report, result.task, title)
        file, names = out / f"predictions-{split}.parquet", predictor.taxonomy.names
        decided = None if result.task == "singlelabel" else result.thresholds
        write_predictions(file, result.scores, names, thresholds=decided)
    curves = None
    if corruptions:
        curves = corruption_curves(predictor, dataset, split, result)
        if out is not None:
            write_text(out / f"corruptions-{split}.json", json.dumps(curves, indent=1) + "\n")
            write_text(out / f"corruptions-{split}.md", render_curves(curves, title))
            draw_curves(curves, out / f"corruptions-{split}.png", title)
    if as_json:
        print_json(result.report | ({"corruptions": curves} if curves else {}))
    else:
        print(render(result.report, result.task, title), end="")
        print(f"\n{render_curves(curves, title)}" if curves else "", end="")


def _number(thresholds: str | None) -> float | str | None:
    """Parse a number, or else the name of a split."""
    from intclip.errors import RecipeError

    if thresholds is None:
        return None
    try:
        value = float(thresholds)
    except ValueError:
        return thresholds
    if not 0 <= value <= 1:
        raise RecipeError(f"--thresholds {thresholds}: a threshold is a probability, from 0 to 1")
    return value
