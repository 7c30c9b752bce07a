"""`intclip mccl`: three diagnostics of MCCL."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.options import AsJson, Checkpoint, DataRoot, Overrides, writable_file, writable_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from intclip.methods.mccl.model import MCCL

app = typer.Typer(
    name="mccl",
    help="Inspect a trained MCCL: prototypes, momentum, attention.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Run = Annotated[str, typer.Argument(help="Folder of a trained MCCL: a run or its bundle.")]


@app.command()
def prototypes(
    run: Run,
    photos: Annotated[list[str], typer.Argument(help="Files, folders, quoted patterns, .txt lists of paths.")],
    out: Annotated[Path, typer.Option(callback=writable_file, help="Image file to write, *.png or *.jpg.")] = Path(
        "prototypes.png"
    ),
    stage: Annotated[int | None, typer.Option(min=1, max=4, help="Backbone stage; default: the last.")] = None,
    label: Annotated[str | None, typer.Option(help="Only prototypes of this label.")] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of prototypes, drawn at random.")] = 10,
    nearest: Annotated[int, typer.Option(min=1, help="Patches per prototype, each from a different photo.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Draw the patches nearest to each prototype, to see whether they show one concept.

    Examples:

    intclip mccl prototypes runs/mccl photos/ --out prototypes.png

    intclip mccl prototypes runs/mccl photos/ --label "Natural beauty" --count 5
    """
    from intclip.cli.common import print_json, progress_bar
    from intclip.data.images import find_images
    from intclip.evidence.prototypes import choose_prototypes, draw_prototypes, nearest_patches

    paths = find_images(photos)
    method = _load(run, checkpoint)
    chosen = choose_prototypes(method, stage=stage, label=label, count=count, seed=seed)
    with progress_bar("searching photos") as tell:
        found = nearest_patches(method, _reporting(paths, tell), chosen, count=nearest)
    draw_prototypes(method, found, out)
    in_use = {number: (used, method.options.pool.prototypes) for number, used in method.prototypes_in_use().items()}
    if as_json:
        print_json(
            {
                "picture": str(out),
                "in_use": {number: used for number, (used, _) in in_use.items()},
                "prototypes": [
                    {
                        "stage": p.stage,
                        "index": p.index,
                        "label": p.label,
                        "usage": p.usage,
                        "patches": [[str(patch.photo), patch.cosine] for patch in p.patches],
                    }
                    for p in found
                ],
            }
        )
        return
    print(f"{out}: {len(found)} prototypes, the nearest patches of {len(paths)} photos")
    for number, (used, total) in in_use.items():
        collapsed = " (collapsed)" if used < method.options.pool.collapse * total else ""
        print(f"stage {number}: {used:.0f} of {total} prototypes in effective use{collapsed}")


@app.command()
def attention(
    run: Run,
    photo: Annotated[Path, typer.Argument(help="One photo.")],
    labels: Annotated[
        list[str] | None,
        typer.Option("--label", help="Labels to compare; default: the two probable ones that differ most."),
    ] = None,
    out: Annotated[Path, typer.Option(callback=writable_file, help="Image file to write, *.png or *.jpg.")] = Path(
        "attention.png"
    ),
    checkpoint: Checkpoint = None,
    as_json: AsJson = False,
) -> None:
    """Draw the attention of contrasting labels in a photo.

    Examples:

    intclip mccl attention runs/mccl beach.jpg --out attention.png

    intclip mccl attention runs/mccl beach.jpg --label Health --label Harmony
    """
    from intclip.cli.common import print_json
    from intclip.evidence.label_attention import contrasting, draw_attention, label_attention, overlap

    method = _load(run, checkpoint)
    attentions = label_attention(method, photo)
    chosen = [attentions[method.taxonomy.index(label)] for label in labels] if labels else contrasting(attentions)
    draw_attention(method, photo, chosen, out)
    pairs = [(a, b, overlap(a, b)) for i, a in enumerate(chosen) for b in chosen[i + 1 :]]
    if as_json:
        print_json(
            {
                "picture": str(out),
                "labels": {item.label: item.probability for item in chosen},
                "overlap": [[a.label, b.label, shared] for a, b, shared in pairs],
            }
        )
        return
    print(f"{out}: {', '.join(f'{item.label} {item.probability:.2f}' for item in chosen)}")
    for a, b, shared in pairs:
        print(f"{a.label} and {b.label} share {shared:.0%} of their attention")


@app.command()
def momentum(
    recipe: Annotated[str, typer.Option(help="Base recipe of all runs: a name or a file.")] = "mccl",
    values: Annotated[str, typer.Option(help="Momenta, separated by commas.")] = "0.9,0.99999",
    data_root: DataRoot = None,
    out: Annotated[
        Path, typer.Option(callback=writable_folder, help="Output folder of the runs and the table.")
    ] = Path("ablations/momentum"),
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(min=0, help="Parallel runs; 0: one per core, or one on a GPU.")] = 0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Train with several prototype momenta.

    Reports scores, stability and collapse. Repeat the command to continue; finished runs are kept.

    Examples:

    intclip mccl momentum --data-root intentonomy

    intclip mccl momentum --recipe proxy-lite --values 0.9,0.999 --seeds 0
    """
    from dataclasses import asdict

    from intclip.cli.common import parse_seeds, print_json, shell_command
    from intclip.cli.train import with_data_root
    from intclip.errors import RecipeError, TrainingError
    from intclip.files import write_text
    from intclip.studies.ablation import choose_jobs, plan_cells, run_cells
    from intclip.studies.momentum import momentum_study, read_results, render
    from intclip.training.recipe import validate_recipe
    from intclip.training.recipe_file import read_recipe

    try:
        momenta = [float(value) for value in values.split(",")]
    except ValueError as error:
        raise RecipeError(f"--values {values!r}: give numbers separated by commas, such as 0.9,0.99999") from error
    content = read_recipe(recipe, with_data_root(data_root, overrides))
    jobs = choose_jobs(jobs, validate_recipe(content, recipe).train.device)
    cells = plan_cells(momentum_study(momenta), content, out, parse_seeds(seeds), jobs=jobs)
    failures = run_cells(cells, jobs=jobs, keep_bundles=True)
    results = read_results(cells)
    text = render(results, shell_command())
    write_text(out / "momentum.md", text)
    if as_json:
        print_json([asdict(result) for result in results])
    else:
        print(text, end="")
    if failures:
        place, reason = next(iter(failures.items()))
        raise TrainingError(f"{len(failures)} of {len(cells)} runs failed, the first in {place}: {reason}")


def _load(run: str, checkpoint: Path | None) -> "MCCL":
    from intclip.errors import IntclipError
    from intclip.inference.bundle import load_bundle
    from intclip.inference.loading import bundle_path
    from intclip.methods.mccl.model import MCCL

    method = load_bundle(bundle_path(run)).build_method(checkpoint)
    if not isinstance(method, MCCL):
        raise IntclipError(f"{run} is not an MCCL model; train one with `intclip train mccl`")
    return method


def _reporting(paths: list[Path], tell: "Callable[[int, int], None] | None") -> "Iterator[Path]":
    for done, path in enumerate(paths):
        if tell is not None:
            tell(done, len(paths))
        yield path
