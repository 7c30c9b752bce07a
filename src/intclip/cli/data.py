"""`intclip data list`, `show`, `prepare` and `check`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intclip.cli.common import load_named_dataset, print_json, print_table, progress_bar
from intclip.cli.options import AsJson, DataOptions, DataRoot, writable_folder

if TYPE_CHECKING:
    from intclip.data.check import Check
    from intclip.data.sample import Dataset, Sample

app = typer.Typer(name="data", help="List, prepare and check datasets.", no_args_is_help=True)
_SHOWN = 10

Name = Annotated[str, typer.Argument(help="A dataset's name (see `intclip data list`), or your own file or folder.")]


@app.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets that can be loaded.

    docs/datasets.md has their layouts, licences and citations.
    """
    from intclip.data.registry import DATASETS

    if as_json:
        rows = [
            {"name": name, "summary": entry.summary, "taxonomy": entry.taxonomy, "terms": entry.terms}
            for name, entry in DATASETS.items()
        ]
        print_json(rows)
        return
    print_table(
        ("name", "what", "taxonomy", "terms"),
        [(name, entry.summary, entry.taxonomy or "", entry.terms) for name, entry in DATASETS.items()],
    )


@app.command()
def show(name: Name, data_root: DataRoot = None, options: DataOptions = None, as_json: AsJson = False) -> None:
    """Show a dataset's splits, labels, missing photos and samples.

    Does not read the photos.

    intclip data show my-photos.csv

    intclip data show intentonomy --set positive_share=0.6
    """
    dataset = load_named_dataset(name, data_root, options)
    from intclip.data.check import check_dataset
    from intclip.data.reading import absent_photos

    counts = check_dataset(dataset, photos=False)
    absent = absent_photos(dataset.splits)
    if as_json:
        samples = {split: [_sample_dict(dataset, s) for s in rows[:3]] for split, rows in dataset.splits.items()}
        facts = {
            "name": dataset.name,
            "task": dataset.task,
            "taxonomy": dataset.taxonomy.name,
            "labels": list(dataset.taxonomy.names),
            "positive_share": dataset.positive_share,
            "splits": counts.splits,
            "missing": len(absent),
            "labels_per_sample": counts.labels_per_sample,
            "positives": counts.positives,
            "samples": samples,
        }
        print_json(facts)
        return
    print(f"{dataset.name}: {dataset.task}, {len(dataset.taxonomy)} labels ({dataset.taxonomy.name})")
    _print_splits(counts)
    _print_classes(counts)
    for split, rows in dataset.splits.items():
        for sample in rows[:2]:
            labels = "; ".join(_positives(dataset, sample)) or "no label"
            print(f"{split}: {sample.id}  {_photo(sample) or 'no photo'}  {labels}")
    if absent:
        first = absent[0]
        total = sum(facts["photos"] for facts in counts.splits.values())
        print(
            f"missing photos: {len(absent)} of {total}, the first is {_photo(first)}"
            f"{first.where and f' ({first.where})'}; `intclip data check --json` lists them all"
        )


@app.command()
def prepare(
    name: Annotated[str, typer.Argument(help="intentonomy, the only dataset whose photos can be downloaded.")],
    data_root: Annotated[Path, typer.Option(help="Output folder.")],
    annotations: Annotated[
        Path | None, typer.Option(help="Folder with the annotation files; default: the output folder, else downloaded.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="train, val or test; may be repeated; default: all.")] = None,
    width: Annotated[int, typer.Option(min=16, help="Largest width of a photo, in pixels.")] = 640,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Parallel downloads.")] = 8,
    rate: Annotated[float, typer.Option(min=0.1, help="Maximum requests per second.")] = 20,
    retry_gone: Annotated[
        bool, typer.Option("--retry-gone", help="Retry photos that an earlier run found gone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Download Intentonomy's annotations and photos.

    Photos are downloaded from the URLs in the annotations, resized to WIDTH (about 1 GB instead of 20),
    verified, and written atomically. Run it again to fetch missing photos. prepare-report.json in the output folder
    lists the photos that no longer exist; training skips them.

    intclip data prepare intentonomy --data-root data/intentonomy
    """
    from intclip.data.fetch import Fetcher
    from intclip.data.prepare import prepare_intentonomy
    from intclip.errors import DatasetError

    if name != "intentonomy":
        raise DatasetError(f"{name} cannot be downloaded, only intentonomy; docs/datasets.md says where to get {name}")
    with Fetcher(rate=rate, connections=workers) as fetcher, progress_bar("photos") as on_progress:
        report = prepare_intentonomy(
            data_root,
            fetcher,
            annotations=annotations,
            splits=split or ("train", "val", "test"),
            width=width,
            retry_gone=retry_gone,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_dict())
    else:
        print(report.summary())


@app.command()
def check(
    name: Name,
    data_root: DataRoot = None,
    options: DataOptions = None,
    photos: Annotated[bool, typer.Option(help="Read every photo; --no-photos checks labels only.")] = True,
    plots: Annotated[
        Path | None,
        typer.Option(callback=writable_folder, help="Plot class counts, co-occurrence and shift into this folder."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that read photos.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find missing, damaged, duplicate and leaking photos.

    Also counts labels and compares splits. A photo leaks if it or a near duplicate is in two splits.

    intclip data check intentonomy --data-root data/intentonomy --plots checks/
    """
    dataset = load_named_dataset(name, data_root, options)
    from intclip.data.check import check_dataset

    with progress_bar("photos") as on_progress:
        found = check_dataset(dataset, photos=photos, workers=workers, on_progress=on_progress)
    drawn: list[Path] = []
    if plots is not None:
        from intclip.data.check_plots import draw

        drawn = draw(found, plots)
    if as_json:
        print_json({**found.to_dict(), "plots": [str(path) for path in drawn]})
        return
    _print_check(found, photos)
    for path in drawn:
        print(f"drawn: {path}")


def _positives(dataset: "Dataset", sample: "Sample") -> list[str]:
    names = dataset.taxonomy.names
    return [names[k] for k, target in enumerate(sample.targets) if target >= dataset.positive_share]


def _photo(sample: "Sample") -> str | None:
    """Return the name of a sample's photo, None if it has none."""
    from intclip.data.images import describe

    return None if sample.image is None else describe(sample.image)


def _sample_dict(dataset: "Dataset", sample: "Sample") -> dict[str, Any]:
    return {"id": sample.id, "image": _photo(sample), "text": sample.text, "labels": _positives(dataset, sample)}


def _print_splits(found: "Check") -> None:
    rows = []
    for split, facts in found.splits.items():
        mean = found.labels_per_sample.get(split, 0.0)
        rows.append((split, facts["samples"], facts["photos"], facts["labelled"], f"{mean:.2f}"))
    print_table(("split", "samples", "photos", "labelled", "labels per sample"), rows)


def _print_classes(found: "Check") -> None:
    splits = list(found.positives)
    rows = [(name, *(found.positives[split][k] for split in splits)) for k, name in enumerate(found.labels)]
    print_table(("label", *splits), rows)


def _print_check(found: "Check", photos: bool) -> None:
    _print_splits(found)
    _print_classes(found)
    if photos:
        for title, problems in (("missing", found.missing), ("damaged", found.corrupt)):
            print(f"{title} photos: {len(problems)}")
            for problem in problems[:_SHOWN]:
                print(f"  {problem.split}: {problem.reason}")
            _more(len(problems))
        for title, groups in (
            ("leaking between splits", found.leaks),
            ("identical within a split", found.duplicates),
            ("near duplicates within a split", found.near_duplicates),
        ):
            print(f"groups of photos {title}: {len(groups)}")
            for group in groups[:_SHOWN]:
                print("  " + "  =  ".join(f"{split}: {name}" for split, name in group[:6]))
            _more(len(groups))
    for pair, rows in found.shift.items():
        shifted = [row for row in rows if abs(row["z"]) > 3]
        print(f"labels that differ by over three standard errors, {pair}: {len(shifted)}")
        for row in shifted[:_SHOWN]:
            print(f"  {row['label']}: {row['first']:.1%} and {row['second']:.1%} (z {row['z']:+.1f})")
    verdict = "no problems" if found.sound else "problems found, see above"
    print(f"{found.dataset}: {verdict}" if photos else f"{found.dataset}: photos were not read")


def _more(count: int) -> None:
    if count > _SHOWN:
        print(f"  … and {count - _SHOWN} more (--json lists all)")
