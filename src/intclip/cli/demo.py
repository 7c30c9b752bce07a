"""`intclip demo`: the main job, offline, on real photos from installed packages, and what to try next."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo"),
) -> None:
    """Predict why photos were taken, offline, on photos that come with installed packages; write their report.

    intclip demo --out demo
    """
    from intclip.cli.common import program
    from intclip.data.demo_photos import demo_photos
    from intclip.files import make_directory
    from intclip.inference.display import headline
    from intclip.inference.loading import load
    from intclip.reports.report import write_folder_report

    photos = demo_photos()
    make_directory(out)
    model = load("lite")
    print(
        f"Why were these {len(photos)} photos taken? {len(model.taxonomy)} intents, by the model inside the package:\n"
    )
    for photo, prediction in zip(photos, model.predict(photos), strict=True):
        print(f"  {photo.name:<22} {headline(prediction)}")
    print(f"\n{model.note}")
    write_folder_report(photos, model, out / "report.html")
    name = program()
    print(f"""
With the evidence in each photo, for your browser: {out / "report.html"}

Next, on your own photos (here ~/Pictures):
  {name} predict ~/Pictures
  {name} report ~/Pictures --out pictures.html
  {name} app --photos ~/Pictures""")
