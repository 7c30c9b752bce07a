"""`intclip predict`, `explain` and `export`."""

import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from PIL.Image import Image

    from intclip.evidence.evidence import Evidence
    from intclip.inference.prediction import Prediction
    from intclip.inference.predictor import Predictor
    from intclip.inference.results import Writer

SHOWN_FAILURES = 20
LONG_WORK = 64
"""Photos from which on a progress bar is worth its lines."""
_BAR = 20


class Branch(StrEnum):
    """Which map to draw."""

    fused = "fused"
    sight = "sight"
    semantic = "semantic"


class Kind(StrEnum):
    """Where a map comes from; see `intclip.evidence.kinds`. `prompts` draws two of them, positive and negative."""

    regions = "regions"
    fine = "fine"
    prompts = "prompts"
    positive = "positive"
    negative = "negative"
    gradcam = "gradcam"
    rollout = "rollout"


class Precision(StrEnum):
    """Arithmetic of the engine."""

    f32 = "f32"
    bf16 = "bf16"
    f16 = "f16"


class Format(StrEnum):
    """What to export to."""

    onnx = "onnx"
    openvino = "openvino"


Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="lite, lite2, lite+lite2, zero-shot:RN101, proxy, a bundle's folder, an exported file, or hf://owner/name.",
    ),
]
Labels = Annotated[str | None, typer.Option("--taxonomy", help="Labels of a zero-shot model: a name or a YAML file.")]
Sentences = Annotated[str, typer.Option(help="Words of a label in a zero-shot model: fine, consolidated, 3-5 … 16-20.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights file of the backbone, where it is your own.")]
EngineOption = Annotated[str, typer.Option("--engine", help="auto, torch, openvino or onnx.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
PrecisionOption = Annotated[Precision, typer.Option("--precision", help="f32 is exact.")]


def predict(
    photos: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, folders, quoted patterns such as 'trip/*.jpg', .txt lists of paths; tables (.csv, .jsonl, "
            ".parquet) with columns image and text."
        ),
    ] = None,
    model: Model = "lite",
    taxonomy: Labels = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Words of the post, with its photo or alone; for a model that reads words, as of `intclip fit`."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels shown a photo, most probable first.")] = 5,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="A label holds from this probability on; else the model's own.")
    ] = None,
    level: Annotated[str | None, typer.Option(help="Read the probabilities at this level of the taxonomy.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON array, an object a photo.")] = False,
    csv: Annotated[Path | None, typer.Option(help="Write a CSV file, a row a photo.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write a Parquet file, a row a photo.")] = None,
    sentences: Sentences = "11-15",
    checkpoint: Checkpoint = None,
    engine: EngineOption = "auto",
    device: Device = "auto",
    precision: PrecisionOption = Precision.f32,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos computed at once.")] = 32,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads that decode photos.")] = None,
) -> None:
    """Tell the intents of photos.

    A filled dot marks labels at or above their threshold. Photos that cannot be read are listed at the end and the
    exit code is 2; the results of all others are written. Of posts with photo and words, read by a model of
    `intclip fit`, it tells too how far the two contradict each other: conflict, 0 where they agree, at most 1.

    intclip predict photo.jpg

    intclip predict holiday/ --csv intents.csv

    intclip predict 'trip/*.jpg' --json --level group

    intclip predict posts.csv --model models/mine --csv intents.csv
    """
    from intclip.cli.common import progress_bar, spare_inputs, words_read
    from intclip.errors import IntclipError, StorageError
    from intclip.inference.results import csv_writer, json_writer, parquet_writer

    paths, words = _posts(photos or [], text)
    for table in (csv, parquet):
        if table is not None:
            spare_inputs(table, [*(photos or []), *paths])
    if csv is not None and parquet is not None and csv.resolve() == parquet.resolve():
        raise StorageError(f"{csv}: --csv and --parquet cannot be one file; choose another name for one of them")
    predictor = _load(model, taxonomy, sentences, checkpoint, engine, device, precision)
    texts = words_read(predictor, paths, words) if text is None else words
    levels = list(predictor.taxonomy.levels.values())
    names = levels[predictor.taxonomy.level_index(0 if level is None else level)]
    both = len(predictor.alone) > 1
    failures: list[tuple[str, str]] = []
    with ExitStack() as stack:
        writers: list[Writer] = []
        if csv is not None:
            writers.append(stack.enter_context(csv_writer(csv, names, level, conflict=both)))
        if parquet is not None:
            writers.append(stack.enter_context(parquet_writer(parquet, names, level, conflict=both)))
        if as_json:
            writers.append(stack.enter_context(json_writer(sys.stdout, level)))
        if not writers:
            writers.append(_table_writer(top, level))
        report = stack.enter_context(progress_bar("predicting")) if len(paths) >= LONG_WORK else None
        predictions = predictor.predict_iter(
            paths, texts=texts, batch_size=batch_size, thresholds=threshold, errors="collect", workers=workers
        )
        for done, prediction in enumerate(predictions, start=1):
            if prediction.error is not None:
                failures.append((prediction.source, prediction.error))
            for write in writers:
                write(prediction)
            if report is not None:
                report(done, len(paths))
    if len(paths) == len(failures) == 1:
        raise IntclipError(failures[0][1])
    if failures:
        _list_failures(failures)
        if len(failures) == len(paths):
            raise IntclipError(f"none of the {len(paths)} photos could be read; look at the first, as named above")
        raise IntclipError(f"{len(failures)} of {len(paths)} photos could not be read; all others are done")


def _posts(photos: list[str], text: str | None) -> tuple[list[Path | None], list[str | None]]:
    """Photos and words of posts, None where a post lacks one of them."""
    from intclip.data.unlabelled import read_posts
    from intclip.errors import IntclipError

    if not photos and text is None:
        raise IntclipError("give photos, a table of posts, or --text")
    images, texts = read_posts(photos)
    if text is not None:
        if len(images) > 1 or any(texts):
            raise IntclipError("--text is about one photo; for several posts give a table with columns image and text")
        return images or [None], [text]
    return images, texts


def explain(
    photo: Annotated[str | None, typer.Argument(help="A photo.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Words of a post, with its photo or alone; for lite and models of `intclip fit`.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Name of a label; the most probable one by default.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write: .png, .jpg or .webp (overlay.png), of words alone .html.")
    ] = None,
    branch: Annotated[
        Branch, typer.Option(help="What decides (fused), what is seen, or what is meant.")
    ] = Branch.fused,
    kind: Annotated[
        Kind,
        typer.Option(
            help="regions: the model's own maps, exact. fine: these of the photo and of its enlarged parts, averaged; "
            "ten passes. prompts: each region's likeness to the label's positive and to its negative prompt, side by "
            "side in the same colours; positive, negative: one of them. gradcam: needs captum. rollout: for a ViT."
        ),
    ] = Kind.regions,
    neighbours: Annotated[
        str | None,
        typer.Option(help="Also tell the nearest of known photos: a folder, or an index of `intclip index`."),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Only the photo with its map, without legend.")] = False,
    how: Annotated[
        str, typer.Option(help="Weights of words: occlusion, or shapley (slower; repeated words share; they add up).")
    ] = "occlusion",
    model: Model = "lite",
    taxonomy: Labels = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    sentences: Sentences = "11-15",
    checkpoint: Checkpoint = None,
    engine: EngineOption = "auto",
    device: Device = "auto",
) -> None:
    """Show where in a photo, and in which words, the evidence for a label lies.

    The map is laid over the part of the photo that the model sees: from dark (least) to bright (most), by its own
    range; the two maps of --kind prompts share one, so that colours compare. A word's weight
    is by how much the label's log-odds fall without it; of a zero-shot model, the cosine of text and label.

    intclip explain photo.jpg --label "Natural beauty" --out overlay.png

    intclip explain photo.jpg -m proxy --kind fine

    intclip explain photo.jpg -m proxy --kind prompts

    intclip explain photo.jpg -m proxy --kind gradcam --neighbours photos/

    intclip explain --text "sunset over the sea, at last" --label "Natural beauty"

    intclip explain photo.jpg --text "what a great day" --model models/mine
    """
    import json
    from dataclasses import replace

    from intclip.cli.common import printable, spare_inputs
    from intclip.cli.words import print_words
    from intclip.data.images import read_image
    from intclip.errors import IntclipError, StorageError
    from intclip.evidence.words import words_page
    from intclip.files import write_text
    from intclip.search.neighbours import nearest_photos

    if photo is None and text is None:
        raise IntclipError("give a photo, --text, or both")
    if photo is None and out is not None and out.suffix.lower() != ".html":
        raise StorageError(f"{out}: the evidence of words alone is an .html file")
    picture = None if photo is None else _picture_format(out or Path("overlay.png"))
    image = None if photo is None else read_image(photo)
    if picture is not None:
        spare_inputs(picture[0], [photo])
    predictor = _load(model, taxonomy, sentences, checkpoint, engine, device, Precision.f32)
    label = label or _most_probable(predictor, photo, text)
    words = None if text is None else predictor.explain_words(text, label, how=how)
    facts: dict[str, object] = {}
    if photo is not None and image is not None and picture is not None:
        first = Kind.positive if kind is Kind.prompts else kind
        evidence = predictor.explain(photo, label, kind=first.value)
        if neighbours is not None:
            evidence = replace(evidence, neighbours=nearest_photos(predictor, photo, neighbours))
        other = predictor.explain(photo, label, kind=Kind.negative.value) if kind is Kind.prompts else None
        facts = {"photo": photo} | _draw(image, evidence, other, branch, plain, *picture)
        if not as_json:
            known = branch is Branch.fused or branch.value in cast("tuple[str, ...]", facts["branches"])
            note = "" if known else f" (this model has no {branch.value} branch of its own)"
            print(f"{facts['label']}: {facts['probability']:.3f}; {branch.value} evidence in {facts['out']}{note}")
            for near in evidence.neighbours:
                print(f"  {near.cosine:.3f}  {printable(near.path)}  {', '.join(near.labels)}")
    if words is not None:
        if photo is None and out is not None:
            write_text(out, words_page(words))
            facts["out"] = str(out)
        found = words.to_dict()
        facts |= {"label": found.pop("label"), "text": found}
        if not as_json:
            print_words(words)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))


def _picture_format(out: Path) -> tuple[Path, str]:
    from intclip.errors import StorageError

    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    if out.suffix.lower() not in formats:
        raise StorageError(f"{out}: write to a .png, .jpg or .webp file")
    return out, formats[out.suffix.lower()]


def _most_probable(predictor: "Predictor", photo: str | None, text: str | None) -> str:
    from intclip.errors import IntclipError

    if photo is None and "text" not in predictor.alone:
        raise IntclipError(f"{predictor.card.model} tells no probabilities of words alone; name a label with --label")
    texts = [text] if text is not None and "text" in predictor.channels else None
    return predictor.predict(None if photo is None else [photo], texts=texts)[0].top(1)[0][0]


def _draw(
    image: "Image",
    evidence: "Evidence",
    other: "Evidence | None",
    branch: Branch,
    plain: bool,
    out: Path,
    format: str,
) -> dict[str, object]:
    """Write the evidence in a photo, with that of the other prompt where it is given; what `explain --json` tells."""
    from dataclasses import asdict

    from intclip.evidence.evidence import overlay
    from intclip.files import atomic_path
    from intclip.reports.sheet import evidence_sheet, prompts_overlay, prompts_sheet

    if other is not None:
        drawn = (prompts_overlay if plain else prompts_sheet)(image, evidence, other, branch.value)
    elif plain:
        drawn = overlay(image, getattr(evidence, branch.value), evidence.box)
    else:
        drawn = evidence_sheet(image, evidence, branch.value)
    with atomic_path(out) as partial:
        drawn.save(partial, format=format)
    facts: dict[str, object] = {"label": evidence.label, "probability": evidence.probability}
    if evidence.neighbours:
        facts["neighbours"] = [asdict(near) for near in evidence.neighbours]
    kind = evidence.kind if other is None else Kind.prompts.value
    return facts | {"branches": evidence.branches, "kind": kind, "out": str(out)}


def export(
    model: Annotated[
        str,
        typer.Argument(help="lite, lite2, lite+lite2, zero-shot:RN101, proxy, a bundle's folder, or hf://owner/name."),
    ],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, or .xml for OpenVINO (with a .bin beside it).")],
    format: Annotated[Format | None, typer.Option(help="By default told by the file's suffix.")] = None,
    maps: Annotated[bool, typer.Option("--maps", help="Keep the evidence maps among the outputs.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise; OpenVINO only; needs --calibrate.")] = False,
    calibrate: Annotated[Path | None, typer.Option(help="Folder of some hundred typical photos for --int8.")] = None,
    taxonomy: Labels = None,
    sentences: Sentences = "11-15",
    checkpoint: Checkpoint = None,
) -> None:
    """Write a model as a file that runs without intclip, with labels, preprocessing and thresholds inside.

    examples/predict_onnx.py shows how another program uses one.

    intclip export lite --out lite.onnx

    intclip export runs/my-model --out model.xml --int8 --calibrate photos/
    """
    from intclip.errors import IntclipError
    from intclip.inference.exported import SUFFIXES, check_suffix

    wanted = format.value if format else SUFFIXES.get(out.suffix)
    if wanted is None:
        raise IntclipError(f"{out}: name the file *.onnx or *.xml")
    check_suffix(out, wanted)
    if int8 and (wanted != "openvino" or calibrate is None):
        raise IntclipError("--int8 writes OpenVINO (*.xml) and needs --calibrate FOLDER with some hundred photos")
    if calibrate is not None and not int8:
        raise IntclipError("--calibrate is for --int8 alone; add --int8, or leave it out for float32")
    predictor = _load(model, taxonomy, sentences, checkpoint, "openvino" if int8 else "auto", "cpu", Precision.f32)
    if int8 and calibrate is not None:
        predictor = predictor.quantize(calibrate)
    predictor.export(out, wanted, maps=maps)
    size = out.stat().st_size + (out.with_suffix(".bin").stat().st_size if wanted == "openvino" else 0)
    labels = len(predictor.taxonomy.names)
    print(f"{out}: {wanted}, {predictor.card.arithmetic}, {labels} labels, {size / 1e6:.1f} MB")


def _load(
    model: str,
    taxonomy: str | None,
    sentences: str,
    checkpoint: Path | None,
    engine: str,
    device: str,
    precision: Precision,
) -> "Predictor":
    from intclip.inference.loading import load

    return load(
        model,
        taxonomy=taxonomy,
        sentences=sentences,
        checkpoint=checkpoint,
        engine=engine,
        device=device,
        precision=precision.value,
    )


def _table_writer(top: int, level: str | None) -> "Writer":
    """Prints a block a photo: its path, then the most probable labels with a bar."""
    from rich.console import Console
    from rich.markup import escape

    from intclip.cli.common import printable

    console = Console(highlight=False, soft_wrap=True)

    def write(prediction: "Prediction") -> None:
        if prediction.error is not None:
            return
        console.print(f"[bold]{escape(printable(prediction.source))}[/bold]")
        for name, probability, holds in _best(prediction, top, level):
            bar = "━" * round(_BAR * probability)
            dot, style = ("●", "green") if holds else ("○", "dim")
            console.print(f"  [{style}]{dot} {probability:5.3f} {bar:<{_BAR}} {escape(name)}[/{style}]")
        if prediction.conflict is not None:
            console.print(f"  conflict of photo and words {prediction.conflict.score:.3f}{_disputed(prediction)}")

    return write


def _disputed(prediction: "Prediction") -> str:
    """The labels that only one channel holds, the two widest gaps."""
    from rich.markup import escape

    pairs = list(prediction.conflict.disputed.items())[:2] if prediction.conflict is not None else []
    told = [f"{escape(name)} {photo:.2f} by photo, {words:.2f} by words" for name, (photo, words) in pairs]
    return f": {'; '.join(told)}" if told else ""


def _best(prediction: "Prediction", top: int, level: str | None) -> list[tuple[str, float, bool]]:
    """The most probable names with their probability and whether they hold; a parent holds where a child does."""
    if level is None:
        holding = set(prediction.labels)
        return [(name, probability, name in holding) for name, probability in prediction.top(top)]
    scores = prediction.level(level)
    taxonomy = prediction.taxonomy
    depth = taxonomy.level_index(level)
    holding = {name if depth == 0 else taxonomy.parents[name][depth - 1] for name in prediction.labels}
    best = sorted(scores.items(), key=lambda item: -item[1])[:top]
    return [(name, probability, name in holding) for name, probability in best]


def _list_failures(failures: list[tuple[str, str]]) -> None:
    from intclip.cli.common import printable

    print("could not be read:", file=sys.stderr)
    for _, error in failures[:SHOWN_FAILURES]:
        print(f"  {printable(error)}", file=sys.stderr)
    if len(failures) > SHOWN_FAILURES:
        print(f"  … and {len(failures) - SHOWN_FAILURES} more (--json, --csv and --parquet name all)", file=sys.stderr)
