"""`intclip distill`."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import AsJson, Device, EngineOption, Labels, Overrides, writable_folder


def distill(
    teacher: Annotated[str, typer.Argument(help="The large model, as for `predict --model`.")],
    photos: Annotated[list[str], typer.Argument(help="Photos: files, folders, patterns. No labels needed.")],
    out: Annotated[
        Path,
        typer.Option(callback=writable_folder, help="Folder of the student's run; `predict --model OUT` loads it."),
    ],
    recipe: Annotated[str, typer.Option(help="Recipe of the student: a built-in name or a YAML file.")] = "distill",
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    taxonomy: Labels = None,
    engine: EngineOption = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Distill a large model into a small one on unlabelled photos.

    The teacher scores every photo once; the student learns its probabilities and inherits its thresholds. A tenth
    of the photos is held out to measure their agreement.

    intclip distill runs/best photos/ --out runs/small

    intclip distill zero-shot:ViT-L/14 photos/ --out runs/small
    """
    from intclip.cli.common import print_json
    from intclip.inference.loading import load
    from intclip.inference.pipeline import expand
    from intclip.training.distill import distill as run

    model = load(teacher, taxonomy=taxonomy, engine=engine, device=device)
    paths = [Path(photo) for photo in expand(photos) if isinstance(photo, str | Path)]
    found = run(model, paths, out, recipe=recipe, overrides=overrides or [], resume=resume)
    if as_json:
        print_json({"out": str(out), "photos": found.photos, "agreement": found.agreement})
        return
    same = {name: 100 * value for name, value in found.agreement.items()}
    print(
        f"{found.photos} photos. On {found.agreement['photos']:.0f} held-out photos, student and teacher agree on "
        f"{same['labels']:.1f} % of the labels and on {same['top_1']:.1f} % of the most probable ones; "
        f"probabilities differ by {found.agreement['difference']:.3f} on average."
    )
    print(f"Student: {found.run.bundle}   try: intclip predict PHOTO --model {out}")
