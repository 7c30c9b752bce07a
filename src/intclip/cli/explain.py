"""`intclip explain`."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO, cast

import typer

from intclip.cli.options import AsJson, ModelInFullPrecision, with_options, writable_file

if TYPE_CHECKING:
    from PIL.Image import Image

    from intclip.data.images import ImageInput
    from intclip.evidence.evidence import Evidence
    from intclip.inference.predictor import Predictor

MapName = Literal["fused", "sight", "semantic"]
WordMethod = Literal["occlusion", "shapley"]
DrawnKind = Literal["regions", "fine", "prompts", "positive", "negative", "gradcam", "rollout"]
"""Kinds of `intclip.evidence.kinds`, and `prompts`, which draws positive and negative."""


@dataclass(frozen=True)
class Drawing:
    """What `explain` draws, and the output file."""

    out: Annotated[
        Path | None,
        typer.Option(
            callback=writable_file,
            help="File to write: .png, .jpg or .webp (overlay.png), .html for a text alone; - is standard output.",
        ),
    ] = None
    branch: Annotated[
        MapName, typer.Option(help="What is seen (sight), what is meant (semantic), or both (fused).")
    ] = "fused"
    kind: Annotated[
        DrawnKind,
        typer.Option(
            help="regions: the model's own maps, exact. fine: the mean of those of the photo and of its enlarged "
            "parts; ten passes. prompts: how alike each region is to the label's positive and to its negative prompt, "
            "side by side in the same colours; positive, negative: one of them. gradcam: needs captum. rollout: for a "
            "ViT."
        ),
    ] = "regions"
    neighbours: Annotated[
        str | None, typer.Option(help="Also list the nearest photos of a folder or an index of `intclip index`.")
    ] = None
    plain: Annotated[bool, typer.Option("--plain", help="Draw photo and map without a legend.")] = False

    def evidence(self, predictor: "Predictor", photo: "ImageInput", label: str) -> "tuple[Evidence, Evidence | None]":
        """Return the evidence, and with `prompts` also that of the negative prompt."""
        first = "positive" if self.kind == "prompts" else self.kind
        evidence = predictor.explain(photo, label, kind=first)
        if self.neighbours is not None:
            from intclip.search.neighbours import nearest_photos

            evidence = replace(evidence, neighbours=nearest_photos(predictor, photo, self.neighbours))
        return evidence, predictor.explain(photo, label, kind="negative") if self.kind == "prompts" else None


@with_options
def explain(
    photo: Annotated[str | None, typer.Argument(help="A photo; - reads it from standard input.")] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Text of a post, with or without its photo; for lite and models of `intclip fit`."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="Label; default: the most probable one.")] = None,
    *,
    drawing: Drawing,
    words: Annotated[
        WordMethod,
        typer.Option(
            help="How words are weighed: occlusion, or shapley (slower; repeated words share their weight, and all "
            "weights add up)."
        ),
    ] = "occlusion",
    choice: ModelInFullPrecision,
    as_json: AsJson = False,
) -> None:
    """Show the evidence for a label in a photo and in a text.

    The map covers the part of the photo that the model sees, from dark (least) to bright (most)
    on its own scale; the two maps of --kind prompts share one scale. A word's weight is the drop in the label's
    log-odds without it or, for a zero-shot model, the drop in the cosine of text and label.

    intclip explain photo.jpg --label "Natural beauty" --out overlay.png

    intclip explain photo.jpg -m proxy --kind fine

    intclip explain photo.jpg -m proxy --kind prompts

    intclip explain photo.jpg -m proxy --kind gradcam --neighbours photos/

    intclip explain --text "sunset over the sea" --label "Natural beauty"

    intclip explain photo.jpg --text "what a great day" --model models/mine
    """
    from intclip.cli.common import print_json, spare_inputs
    from intclip.cli.words import print_words
    from intclip.data.images import read_image
    from intclip.errors import IntclipError, StorageError
    from intclip.evidence.words import words_page
    from intclip.files import is_stdout, write_text

    if photo is None and text is None:
        raise IntclipError("give a photo, --text, or both")
    out = drawing.out
    if photo is None and out is not None and out.suffix.lower() != ".html" and not is_stdout(out):
        raise StorageError(f"{out}: evidence for a text alone is written as .html")
    source = None if photo is None else _one_photo(photo)
    picture = None if source is None else _picture_format(out or Path("overlay.png"))
    image = None if source is None else read_image(source)
    if picture is not None:
        spare_inputs(picture[0], [photo])
    predictor = choice.load()
    label = label or _most_probable(predictor, source, text)
    weights = None if text is None else predictor.explain_words(text, label, how=words)
    facts: dict[str, object] = {}
    messages = sys.stderr if out is not None and is_stdout(out) else sys.stdout
    if source is not None and image is not None and picture is not None:
        evidence, other = drawing.evidence(predictor, source, label)
        facts = {"photo": photo} | _draw(image, evidence, other, drawing, *picture)
        if not as_json:
            _print_evidence(facts, evidence, drawing.branch, messages)
    if weights is not None:
        if photo is None and out is not None:
            write_text(out, words_page(weights))
            facts["out"] = str(out)
        of_text = weights.to_dict()
        facts |= {"label": of_text.pop("label"), "text": of_text}
        if not as_json and messages is sys.stdout:
            print_words(weights)
    if as_json:
        print_json(facts, messages)


def _one_photo(photo: str) -> "ImageInput":
    from intclip.data.unlabelled import STDIN, read_standard_input
    from intclip.errors import ImageError

    if photo != STDIN:
        return photo
    photos = read_standard_input()
    if len(photos) != 1:
        raise ImageError(f"standard input lists {len(photos)} photos; explain takes one")
    return photos[0]


def _print_evidence(facts: dict[str, object], evidence: "Evidence", branch: MapName, file: TextIO) -> None:
    from intclip.cli.common import printable

    known = branch == "fused" or branch in cast("tuple[str, ...]", facts["branches"])
    note = "" if known else f" (this model has no {branch} branch of its own)"
    print(f"{facts['label']}: {facts['probability']:.3f}; {branch} evidence in {facts['out']}{note}", file=file)
    for near in evidence.neighbours:
        print(f"  {near.cosine:.3f}  {printable(near.path)}  {', '.join(near.labels)}", file=file)


def _picture_format(out: Path) -> tuple[Path, str]:
    from intclip.errors import StorageError
    from intclip.files import check_target, is_stream

    formats = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
    check_target(out)
    if is_stream(out):
        return out, "PNG"
    if out.suffix.lower() not in formats:
        raise StorageError(f"{out}: name a .png, .jpg or .webp file")
    return out, formats[out.suffix.lower()]


def _most_probable(predictor: "Predictor", photo: "ImageInput | None", text: str | None) -> str:
    from intclip.errors import IntclipError

    if photo is None and "text" not in predictor.alone:
        raise IntclipError(f"{predictor.card.model} cannot predict from a text alone; choose a label with --label")
    texts = [text] if text is not None and "text" in predictor.channels else None
    return predictor.predict(None if photo is None else [photo], texts=texts)[0].top(1)[0][0]


def _draw(
    image: "Image", evidence: "Evidence", other: "Evidence | None", drawing: Drawing, out: Path, format: str
) -> dict[str, object]:
    """Draw the evidence, with that of the other prompt if given; return what `explain --json` prints."""
    from dataclasses import asdict

    from intclip.evidence.heat import overlay
    from intclip.files import atomic_path
    from intclip.reports.sheet import evidence_sheet, prompts_overlay, prompts_sheet

    if other is not None:
        drawn = (prompts_overlay if drawing.plain else prompts_sheet)(image, evidence, other, drawing.branch)
    elif drawing.plain:
        drawn = overlay(image, getattr(evidence, drawing.branch), evidence.box)
    else:
        drawn = evidence_sheet(image, evidence, drawing.branch)
    with atomic_path(out) as partial:
        drawn.save(partial, format=format)
    facts: dict[str, object] = {"label": evidence.label, "probability": evidence.probability}
    if evidence.neighbours:
        facts["neighbours"] = [asdict(near) for near in evidence.neighbours]
    kind = evidence.kind if other is None else "prompts"
    return facts | {"branches": evidence.branches, "kind": kind, "out": str(out)}
