"""`intclip report`: a folder of photos, or an evaluation, as one HTML page."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intclip.cli.options import Exclude, Labels, ModelOption, Sentences, writable_file

if TYPE_CHECKING:
    from intclip.data.sample import ImageSource
    from intclip.evaluation.saved import SavedEvaluation


def report(
    photos: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, quoted patterns, .txt lists of paths, tables of posts; with --evaluation the folder "
            "of a training run or of `intclip evaluate --out`."
        ),
    ],
    out: Annotated[Path, typer.Option(callback=writable_file, help="HTML file to write.")] = Path("report.html"),
    model: ModelOption = "lite",
    taxonomy: Labels = None,
    exclude: Exclude = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Why these photos were taken",
    sentences: Sentences = "11-15",
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Report a model's accuracy from saved predictions.")
    ] = False,
    split: Annotated[str, typer.Option(help="With --evaluation: the split.")] = "test",
    against: Annotated[
        Path | None, typer.Option(help="With --evaluation: the folder of another model to compare with.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --evaluation: dataset of the photos; default: the training dataset.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="With --evaluation: folder of that dataset.")] = None,
) -> None:
    """Write an offline page with photos, intents and evidence.

    With --evaluation the page is about a model: metrics per label, curves over thresholds, precision and recall,
    calibration, confusion and co-occurrence, best and worst photos, and a comparison with another model.

    Examples:

    intclip report holiday/ --out holiday.html

    intclip report posts.csv --model models/mine --out posts.html

    intclip report runs/mine --evaluation --out mine.html

    intclip report runs/mine --evaluation --split val --against runs/other
    """
    if evaluation:
        _evaluation(photos, out, split, against, data, data_root)
        return
    from intclip.cli.common import print_written, printable, spare_inputs, words_read
    from intclip.data.unlabelled import read_posts
    from intclip.errors import IntclipError
    from intclip.inference.loading import load
    from intclip.reports.report import write_folder_report

    if against is not None or data is not None or data_root is not None:
        raise IntclipError("--against, --data and --data-root need --evaluation")
    paths, texts = read_posts(photos, exclude=exclude or ())
    spare_inputs(out, [*photos, *(path for path in paths if isinstance(path, Path))])
    predictor = load(model, taxonomy=taxonomy, sentences=sentences)
    words = words_read(predictor, paths, texts)
    failures = write_folder_report(paths, predictor, out, texts=words, title=title)
    what = "photos" if words is None else "posts"
    print_written(out, f"{len(paths) - len(failures)} {what}")
    if failures:
        for failure in failures:
            print(f"  {printable(str(failure))}", file=sys.stderr)
        raise IntclipError(f"{len(failures)} of {len(paths)} photos could not be read; the others are in the report")


def _evaluation(
    folders: list[str], out: Path, split: str, against: Path | None, data: str | None, data_root: str | None
) -> None:
    from intclip.cli.common import print_written, spare_inputs
    from intclip.errors import IntclipError
    from intclip.evaluation.saved import evaluation_files, read_evaluation
    from intclip.reports.evaluation_report import write_evaluation_report

    if len(folders) != 1:
        raise IntclipError("--evaluation takes one folder; give the other one with --against")
    spare_inputs(out, [file for folder in (folders[0], against) if folder for file in evaluation_files(folder, split)])
    ours = read_evaluation(folders[0], split)
    theirs = None if against is None else read_evaluation(against, split)
    if theirs is not None and against is not None:
        names = names_apart(Path(folders[0]), against)
        ours, theirs = replace(ours, name=names[0]), replace(theirs, name=names[1])
    find_photo = _photo_finder(ours, data, data_root)
    write_evaluation_report(ours, out, against=theirs, find_photo=find_photo)
    print_written(out, f"{len(ours.ids)} photos of {split}")


def names_apart(first: Path, second: Path) -> tuple[str, str]:
    """Name two folders by as many last parts of their paths as distinguish them."""
    paths = [folder.resolve().parts for folder in (first, second)]
    for count in range(1, max(map(len, paths)) + 1):
        one, other = ("/".join(parts[-count:]) for parts in paths)
        if one != other:
            break
    return one, other


def _photo_finder(
    evaluation: "SavedEvaluation", data: str | None, data_root: str | None
) -> "Callable[[str], ImageSource | None] | None":
    """Find the photos of the evaluation; without them the page has none, unless they were requested."""
    from intclip.data.registry import load_dataset
    from intclip.errors import IntclipError

    section = (evaluation.recipe or {}).get("data", {})
    name = data or section.get("name")
    if name is None:
        if data_root is not None:
            raise IntclipError("--data-root needs the dataset: give --data")
        print("the page has no photos: give --data and --data-root", file=sys.stderr)
        return None
    root = data_root if data_root is not None or data is not None else section.get("root")
    try:
        dataset = load_dataset(name, root, **({} if data else section.get("options", {})))
    except IntclipError as error:
        if data is not None or data_root is not None:
            raise
        print(f"the page has no photos: {error}", file=sys.stderr)
        return None
    images = {sample.id: sample.image for samples in dataset.splits.values() for sample in samples}
    return images.get
