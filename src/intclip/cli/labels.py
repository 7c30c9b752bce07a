"""`intclip labels list`, `show`, `check`, `score` and `integrate`."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from intclip.cli.common import load_named_dataset, print_json, print_table, progress_bar
from intclip.cli.options import AsJson, Checkpoint, DataOptions, DataRoot, Overwrite, writable_file

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from intclip.labels.taxonomy import Taxonomy

app = typer.Typer(name="labels", help="Taxonomies: show, check, score and write their sentences.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="TAXONOMY", help="A built-in taxonomy's name, or a YAML file.")]


@app.command("list")
def list_taxonomies(as_json: AsJson = False) -> None:
    """List the built-in taxonomies."""
    from intclip.labels import builtin_taxonomies, load_taxonomy

    taxonomies = [load_taxonomy(name) for name in builtin_taxonomies()]
    if as_json:
        facts = [
            {"name": t.name, "levels": _level_sizes(t), "exclusive": t.exclusive, "source": t.source}
            for t in taxonomies
        ]
        print_json(facts)
        return
    rows = [(t.name, _levels(t), "one" if t.exclusive else "any number") for t in taxonomies]
    print_table(("name", "levels", "labels per photo"), rows)


@app.command()
def show(
    name: Name,
    sentences: Annotated[str, typer.Option(help="Class text to print: fine, template, 11-15 …")] = "11-15",
    as_json: AsJson = False,
) -> None:
    """Print a taxonomy as a tree with the text of each class.

    intclip labels show intentonomy --sentences 6-9
    """
    taxonomy = _load(name)
    if as_json:
        print_json(taxonomy.to_dict())
        return
    texts = dict(zip(taxonomy.names, taxonomy.sentences(sentences), strict=True))
    print(f"{taxonomy.name}: {_levels(taxonomy)}. {taxonomy.source}".rstrip())
    levels = list(taxonomy.levels.values())
    places = [{label: place for place, label in enumerate(names)} for names in levels]

    def path(label: str) -> list[int]:
        line = (label, *taxonomy.parents.get(label, ()))
        return [places[depth][line[depth]] for depth in reversed(range(len(levels)))]

    above: tuple[str, ...] = ()
    for label in sorted(taxonomy.names, key=path):
        line = tuple(reversed(taxonomy.parents.get(label, ())))
        for depth, ancestor in enumerate(line):
            if line[: depth + 1] != above[: depth + 1]:
                print("  " * depth + ancestor)
        above = line
        text = "" if texts[label] == label else f": {texts[label]}"
        print("  " * len(line) + f"{taxonomy.names.index(label)} {label}{text}")


@app.command()
def check(name: Name, as_json: AsJson = False) -> None:
    """Check a taxonomy file for errors, and print suggestions.

    Errors (exit code 2): a cycle, an orphan, a duplicate name, a wrong number of sentences, a sentence outside its
    range of words or over 77 CLIP tokens. Suggestions: missing forms, long sentences and nearly equal sentences.

    intclip labels check my-intents.yaml
    """
    from intclip.inference.results import score_columns
    from intclip.labels.advice import advise

    taxonomy = _load(name)
    advice = advise(taxonomy) + [
        f"tables write label {name!r} as column {column!r}, because {name!r} is another column's name"
        for name, column in zip(taxonomy.names, score_columns(taxonomy.names), strict=True)
        if name != column
    ]
    if as_json:
        facts = {
            "name": taxonomy.name,
            "levels": _level_sizes(taxonomy),
            "written": list(taxonomy.written),
            "advice": advice,
        }
        print_json(facts)
        return
    for line in advice:
        print(f"advice: {line}")
    print(f"{taxonomy.name}: {len(taxonomy)} classes, valid")


@app.command()
def score(
    name: Name,
    data: Annotated[
        str, typer.Argument(help="A dataset (see `intclip data list`), your own file, or a JSON of id: description.")
    ],
    labels: Annotated[
        Path | None, typer.Option(help="Annotation file with the labels of a JSON of descriptions.")
    ] = None,
    sentences: Annotated[
        list[str] | None,
        typer.Option(help="Class text: fine, consolidated, template, 3-5 … 16-20 or all; may be repeated."),
    ] = None,
    photos: Annotated[bool, typer.Option("--photos/--texts", help="Rank a dataset's photos or its texts.")] = True,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "val",
    data_root: DataRoot = None,
    options: DataOptions = None,
    backbone: Annotated[str, typer.Option(help="Backbone that embeds texts and photos.")] = "lite",
    checkpoint: Checkpoint = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also print each class's average precision.")] = False,
    as_json: AsJson = False,
) -> None:
    """Measure how well a taxonomy's texts rank photos.

    Ranks photos or descriptions without training. Each class ranks the items by cosine. mAP is the mean of exact
    average precisions; F1 is taken where precision equals recall; ranking is label ranking average precision. The
    table has percentages, JSON has fractions.

    intclip labels score intentonomy descriptions.json --labels annotations.json

    intclip labels score proxy-intents proxy-intents --sentences all --per-class

    intclip labels score my.yaml my-photos.csv --split train --sentences 11-15
    """
    from intclip.labels import FORMS

    taxonomy = _load(name)
    chosen = [form for form in FORMS if not sentences or "all" in sentences or form in sentences]
    for form in sentences or []:
        if form != "all":
            taxonomy.sentences(form)  # reject an unknown form before loading anything
    from intclip.backbones import load_backbone
    from intclip.evaluation.sentences import score_dataset, score_texts

    with progress_bar("items") as on_progress:
        if labels is None:
            dataset = load_named_dataset(data, data_root, options)
            towers = load_backbone(backbone, checkpoint=checkpoint)
            scores = score_dataset(taxonomy, dataset, split, towers, chosen, photos=photos, on_progress=on_progress)
        else:
            texts, targets, unlabelled = _described(data, labels, taxonomy)
            towers = load_backbone(backbone, checkpoint=checkpoint)
            scores = score_texts(taxonomy, texts, targets, towers, chosen, on_progress=on_progress)
            scores = replace(scores, left_out=unlabelled)
    if as_json:
        facts = {"taxonomy": taxonomy.name, "backbone": backbone, "items": scores.items, "left_out": scores.left_out}
        forms = [
            {"form": s.form, "written": _written(taxonomy, s.form), "mAP": s.mAP, "mAP_voc": s.mAP_voc}
            | {"macro_f1": s.macro_f1, "ranking": s.ranking, "per_class": s.per_class}
            for s in scores.forms
        ]
        print_json({**facts, "forms": forms})
        return
    left_out = f" ({scores.left_out} left out)" if scores.left_out else ""
    print(f"{taxonomy.name} on {data}: {scores.items} items{left_out}, backbone {backbone}, percent")
    rows = [
        (
            s.form if _written(taxonomy, s.form) else f"{s.form} (not written)",
            *_percent(s.mAP, s.mAP_voc, s.macro_f1, s.ranking),
        )
        for s in scores.forms
    ]
    print_table(("form", "mAP", "mAP (VOC)", "macro F1", "ranking"), rows)
    if per_class:
        columns = [s.per_class for s in scores.forms]
        table = [
            (n, columns[0][n]["support"], *_percent(*(column[n]["AP"] for column in columns))) for n in taxonomy.names
        ]
        print_table(("AP of", "positives", *(s.form for s in scores.forms)), table)


def _described(data: str, labels: Path, taxonomy: "Taxonomy") -> "tuple[list[str], npt.NDArray[np.float32], int]":
    """Return N descriptions of a JSON file, their targets (N, K), and the number of those without labels."""
    from intclip.data.intentonomy import read_annotations
    from intclip.data.reading import read_json
    from intclip.errors import DatasetError
    from intclip.labels.score import join_descriptions

    descriptions = read_json(Path(data))
    if not isinstance(descriptions, dict):
        raise DatasetError(f"{data} is not a JSON object of `id: description`; correct it, or omit --labels")
    known = {photo.id: photo.targets for photo in read_annotations(labels, taxonomy)}
    texts, targets = join_descriptions(descriptions, known, data)
    return texts, targets, len(descriptions) - len(texts)


@app.command()
def integrate(
    name: Name,
    model: Annotated[str, typer.Option(help="Name of the language model at the endpoint.")],
    out: Annotated[
        Path, typer.Option(callback=writable_file, help="YAML file for the taxonomy with the new sentences.")
    ],
    length: Annotated[
        list[str] | None, typer.Option(help="3-5, 6-9, 11-15, 16-20 words, or all; may be repeated.")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible endpoint, such as http://localhost:11434/v1; default: $OPENAI_BASE_URL or OpenAI."
        ),
    ] = None,
    fine_only: Annotated[
        bool, typer.Option("--fine-only", help="Use class names without their levels (HCI-FG).")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="Folder of the model's answers; default: OUT.answers.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=64, help="Classes per request.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Requests per batch, including retries of invalid sentences.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.1, help="Timeout of a request in seconds.")] = 120,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Have a language model write a taxonomy's sentences.

    Uses Hierarchical Class Integration (HCI). Stage 1 merges the levels of each class and drops repetition; stage 2
    writes one sentence of the given length. Missing, duplicate and wrong-length sentences are requested again. Every
    answer is cached with model, prompt hash and date: an interrupted run continues where it stopped, and repeating
    the command with --overwrite sends no requests. The key is $OPENAI_API_KEY; local servers need none. Class names
    and definitions are sent to BASE_URL.

    export OPENAI_BASE_URL=http://localhost:11434/v1

    intclip labels integrate intentonomy --model llama3.1 --out my.yaml
    """
    from intclip.errors import StorageError
    from intclip.files import is_stdout, is_stream, write_text
    from intclip.labels.hci import integrate as run
    from intclip.labels.lengths import WORD_RANGES
    from intclip.labels.llm import ChatClient, Retries
    from intclip.labels.writing import taxonomy_yaml

    taxonomy = _load(name)
    wanted = [f for f in WORD_RANGES if length and ("all" in length or f in length)] or ["11-15"]
    if unknown := [f for f in length or [] if f not in (*WORD_RANGES, "all")]:
        raise typer.BadParameter(f"{unknown[0]!r} is none of: {', '.join(WORD_RANGES)}, all")
    if out.is_file() and not overwrite:
        raise StorageError(f"{out} exists; choose another path or add --overwrite")
    kept = (
        cache
        if cache is not None
        else Path("labels.answers")
        if is_stream(out)
        else out.with_name(f"{out.name}.answers")
    )
    client = ChatClient(model, base_url=base_url, cache=kept, timeout=timeout, retries=Retries())
    comments, report = [], []
    for form in wanted:
        with progress_bar(f"{form} words") as on_progress:
            done = run(
                taxonomy, client, form, fine_only=fine_only, batch=batch_size, rounds=rounds, on_progress=on_progress
            )
        taxonomy = done.taxonomy
        last = done.answers[-1]
        comments.append(
            f"{form} words: written by {last.served_by} on {last.date}, last prompt {last.prompt_hash[:16]}"
        )
        report.append(_integration_facts(form, done))
    write_text(out, taxonomy_yaml(taxonomy, comments))
    client.close()
    messages = sys.stderr if is_stdout(out) else sys.stdout
    if as_json:
        facts = {"out": str(out), "answers": str(kept), "forms": report}
        print_json(facts, messages)
        return
    for facts in report:
        asked = f"{facts['asked']} answers requested, {facts['cached']} cached"
        print(f"{facts['form']} words: {len(taxonomy)} sentences, {asked}", file=messages)
    print(f"{out} written; measure it with: intclip labels score {out} DATA", file=messages)


def _integration_facts(form: str, done: Any) -> dict[str, Any]:
    cached = sum(answer.cached for answer in done.answers)
    sentences = dict(zip(done.taxonomy.names, done.taxonomy.sentences(form), strict=True))
    facts = {"form": form, "asked": len(done.answers) - cached, "cached": cached}
    provenance = [
        {"model": a.model, "served_by": a.served_by, "prompt_hash": a.prompt_hash, "date": a.date} for a in done.answers
    ]
    return {**facts, "merged": dict(done.merged), "sentences": sentences, "provenance": provenance}


def _load(name: str) -> "Taxonomy":
    from intclip.labels import load_taxonomy

    return load_taxonomy(name)


def _level_sizes(taxonomy: "Taxonomy") -> dict[str, int]:
    return {level: len(names) for level, names in taxonomy.levels.items()}


def _levels(taxonomy: "Taxonomy") -> str:
    return ", ".join(f"{count} {level}" for level, count in _level_sizes(taxonomy).items())


def _written(taxonomy: "Taxonomy", form: str) -> bool:
    return form in ("fine", "consolidated", "template", *taxonomy.written)


def _percent(*values: float) -> tuple[str, ...]:
    return tuple(f"{100 * value:.2f}" for value in values)
