"""`intclip lite-align`."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from intclip.cli.options import AsJson, writable_file


def lite_align(
    data_root: Annotated[Path, typer.Option(help="Folder with caption files, and photos in images/.")],
    out: Annotated[Path, typer.Option(callback=writable_file, help="The projection to write, a safetensors file.")],
    backbone: Annotated[Literal["lite", "lite2", "lite+lite2"], typer.Option(help="Image towers to align.")] = "lite",
    recipe: Annotated[Path | None, typer.Option(help="YAML file that overrides the built-in recipe.")] = None,
    train: Annotated[str, typer.Option(help="Training captions: JSON, photo name to captions.")] = (
        "captions_train.json"
    ),
    val: Annotated[str, typer.Option(help='Captions for measuring recall; "" for none.')] = "captions_val.json",
    also: Annotated[
        Path | None, typer.Option(help="A second folder of captioned photos, mixed in by the recipe.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Align an embedded image tower with sentence embeddings.

    Trains a projection on captioned photos. Uses pairs of photos and captions, and the names of ImageNet's classes;
    the towers stay frozen. This reproduces the packaged projection, or makes one for your own photos.

    Examples:

    intclip lite-align --data-root flickr8k --also wide --out lite.safetensors

    intclip lite-align --data-root photos --backbone lite2 --out my.safetensors

    intclip lite-align --data-root my --val "" --out my.safetensors
    """
    from dataclasses import asdict

    from intclip.cli.common import print_json, progress_bar
    from intclip.training.captioned import Progress
    from intclip.training.lite_align import align, load_align_recipe

    chosen = load_align_recipe(recipe)
    with ExitStack() as bars:

        def bar(what: str) -> Progress | None:
            bars.close()
            return bars.enter_context(progress_bar(what))

        report = align(data_root, out, chosen, files=(train, val or None), also=also, name=backbone, progress=bar)
    if as_json:
        print_json(asdict(report))
        return
    print(f"{out}: {report.photos} photos, {report.captions} captions, last loss {report.loss:.3f}")
    if report.recall is not None:
        print(f"On {report.recall_photos} unseen photos:")
        for name, values in (
            ("text to image", report.recall["text_to_image"]),
            ("image to text", report.recall["image_to_text"]),
        ):
            print(f"  {name}: " + "  ".join(f"{rank} {value:.1f}" for rank, value in values.items()))
