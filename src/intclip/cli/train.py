"""`intclip train`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, DataRoot, Overrides, writable_folder


def train(
    recipe: Annotated[str | None, typer.Argument(help="A built-in recipe (see --list), or a YAML file.")] = None,
    data_root: DataRoot = None,
    out: Annotated[
        Path | None, typer.Option(callback=writable_folder, help="Output folder; default: runs/RECIPE.")
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint, if any.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the whole recipe, defaults included, and exit.")] = False,
    list_recipes: Annotated[bool, typer.Option("--list", help="List the built-in recipes and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model from a recipe, and score it on the test split.

    A recipe sets everything: data, backbone, method, optimiser, protocol. `--set` changes a key
    for one run; unknown keys are errors. An interrupted run continues with `--resume` and, on a CPU, ends with the same
    model, bit for bit.

    The output folder gets recipe.yaml, log.jsonl (losses, rates, speed, validation), bundle/ (the model, for
    `intclip predict --model RUN`), a report and the predictions of every scored split, and metrics.json.

    To use several processes:

    torchrun --nproc-per-node 2 -m intclip.cli train RECIPE …

    Examples:

    intclip train --list

    intclip train proxy-lite --data-root flickr8k --out runs/proxy

    intclip train clean --data-root intentonomy --set backbone.name=ViT-B/32

    intclip train my-recipe.yaml --resume

    intclip train paper --set method.name=dualcoop --show
    """
    from intclip.cli.common import print_json
    from intclip.errors import RecipeError
    from intclip.training.recipe import builtin_recipes, load_recipe
    from intclip.training.recipe_file import describe_recipe, dump_recipe

    if list_recipes:
        width = max(map(len, builtin_recipes()))
        for name in builtin_recipes():
            print(f"{name:<{width}}  {describe_recipe(name)}")
        return
    if recipe is None:
        raise RecipeError(f"give a recipe: {', '.join(builtin_recipes())}, or a YAML file; see `intclip train --help`")
    chosen = load_recipe(recipe, with_data_root(data_root, overrides))
    if show:
        print(dump_recipe(chosen.model_dump(mode="json")), end="")
        return
    from intclip.training.run import train as run

    result = run(chosen, out or Path("runs") / chosen.name, resume)
    if as_json:
        print_json(result.metrics)
        return
    from intclip.backbones.hub import HUB_PREFIX
    from intclip.evaluation.report import render_run

    print(render_run(result.metrics), end="")
    own = chosen.backbone.checkpoint  # a bundle does not include it
    again = "" if own is None or own.startswith(HUB_PREFIX) else f" --checkpoint {own}"
    print(f"\nModel: {result.bundle}   try: intclip predict PHOTO --model {result.out}{again}")


def with_data_root(data_root: str | None, overrides: list[str] | None) -> list[str]:
    """Return the overrides of `--data-root` and `--set`; `--set` takes precedence."""
    import json

    root = [] if data_root is None else [f"data.root={json.dumps(data_root)}"]
    return root + (overrides or [])
