"""`intclip ablate`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, DataRoot, Overrides, writable_folder


def ablate(
    study: Annotated[
        str | None, typer.Argument(help="table2 … table6, table-note (losses), methods (Table 1), methods-lite.")
    ] = None,
    recipe: Annotated[str, typer.Option(help="Base recipe of all rows: a name or a file.")] = "clean",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Output folder; default: ablations/STUDY-RECIPE.")
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; every row runs once with each.")] = "0,1,2",
    rows: Annotated[
        list[str] | None, typer.Option("--row", metavar="NAME", help="Run only this row; may be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Parallel runs; 0: one per core, or one on a GPU.")] = 0,
    overrides: Overrides = None,
    fine_taxonomy: Annotated[
        Path | None, typer.Option(help="Taxonomy written by `labels integrate --fine-only`, for the row HCI-FG.")
    ] = None,
    keep_bundles: Annotated[bool, typer.Option("--keep-bundles", help="Keep the trained model of every run.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the rows and what they change, and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a study of the paper on any dataset and backbone.

    Trains every row of the table with every seed, and shows the paper's figures beside yours. Repeat the command to
    continue: finished runs are kept, interrupted ones resume, and runs of other studies next to --out are reused.
    Writes STUDY.md, STUDY.csv, STUDY.png and cells/, one training run each.

    Examples:

    intclip ablate --show

    intclip ablate table4 --data-root intentonomy

    intclip ablate table2 --recipe proxy-lite --data-root flickr8k --seeds 0,1,2

    intclip ablate table6 --recipe clean-emotion --data-root EmotionROI

    intclip ablate methods-lite --recipe proxy-lite --set data.limit=1000

    intclip ablate table5 --recipe proxy-lite --set data.name=memes --out memes
    """
    from intclip.cli.common import parse_seeds, print_json, shell_command
    from intclip.cli.train import with_data_root
    from intclip.data.registry import load_dataset
    from intclip.errors import RecipeError, TrainingError
    from intclip.studies.ablation import adopt_finished, choose_jobs, plan_cells, run_cells
    from intclip.studies.studies import load_study, study_names
    from intclip.studies.tables import collect, describe_protocol, write_tables
    from intclip.training.recipe import validate_recipe
    from intclip.training.recipe_file import read_recipe

    if study is None:
        if not show:
            raise RecipeError(f"name a study: {', '.join(study_names())}; see `intclip ablate --help`")
        _print_studies(study_names())
        return
    if show:
        _print_studies([study])
        return
    load_study(study)  # an unknown study is reported before a recipe or a dataset is read
    chosen_overrides = with_data_root(data_root, overrides)
    content = read_recipe(recipe, chosen_overrides)
    base = validate_recipe(content, recipe)
    dataset = load_dataset(base.data.name, base.data.root, **base.data.options)
    chosen = load_study(study, dataset.task)
    out = out or Path("ablations") / f"{study}-{base.name}"
    fine = None if fine_taxonomy is None else str(fine_taxonomy)
    jobs = choose_jobs(jobs, base.train.device)
    cells = plan_cells(
        chosen.only(rows) if rows else chosen,
        content,
        out,
        parse_seeds(seeds),
        overrides=chosen_overrides,
        task=dataset.task,
        fine_taxonomy=fine,
        jobs=jobs,
    )
    if not keep_bundles:
        adopt_finished(cells, out.parent)
    failures = run_cells(cells, jobs=jobs, keep_bundles=keep_bundles)
    table = collect(chosen, cells, dataset.name, failures)
    protocol = describe_protocol(cells, dataset)
    paths = write_tables(out, study, chosen, table, command=shell_command(), protocol=protocol)
    if as_json:
        print_json(
            [{"row": row.name, "paper": row.paper, "ours": {m: row.values(m) for m in chosen.metrics}} for row in table]
        )
    else:
        print(paths[0].read_text(encoding="utf-8"), end="")
        print(f"\nWritten: {', '.join(map(str, paths))}")
    if failures:
        first = next(cell for cell in cells if str(cell.out) in failures)
        raise TrainingError(
            f"{len(failures)} of {len(cells)} runs failed, the first is row {first.row!r}, seed {first.seed}: "
            f"{failures[str(first.out)]} (the same command runs what is not finished)"
        )


def _print_studies(names: list[str]) -> None:
    from intclip.studies.ablation import is_run
    from intclip.studies.studies import TABLE6, load_study

    for name in names:
        for part in TABLE6.values() if name == "table6" else (name,):
            study = load_study(part)
            print(f"{part}: {study.title}")
            for row in study.rows:
                what = f"recipe {row.recipe}" if row.recipe else ""
                what = " and ".join(part for part in (what, str(row.set or "")) if part) or "the recipe unchanged"
                what = what if is_run(row, "given") else "published figures only"
                print(f"  {row.name}: {what}")
