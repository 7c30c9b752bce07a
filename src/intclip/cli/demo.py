"""`intclip demo`: predictions and a report, offline, on real photos from installed packages."""

from pathlib import Path
from typing import Annotated

import typer

from intclip.cli.options import writable_folder


def demo(
    out: Annotated[Path, typer.Option(callback=writable_folder, help="Folder for the report.")] = Path("demo"),
) -> None:
    """Try intclip on photos from installed packages, offline.

    Predicts why they were taken and writes a report.

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
        f"Why were these {len(photos)} photos taken? {len(model.taxonomy)} intents, predicted by the packaged model:\n"
    )
    for photo, prediction in zip(photos, model.predict(photos), strict=True):
        print(f"  {photo.name:<22} {headline(prediction)}")
    print(f"\n{model.note}")
    write_folder_report(photos, model, out / "report.html")
    name = program()
    print(f"""
Report with evidence, for your browser: {out / "report.html"}

Next, on your own photos (here ~/Pictures):
  {name} predict ~/Pictures
  {name} report ~/Pictures --out pictures.html
  {name} app --photos ~/Pictures""")
