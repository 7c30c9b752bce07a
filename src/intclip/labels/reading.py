"""Taxonomies from YAML: from a list of names to a full file with levels and sentences.

The text of a class in an HCI form ("11-15", …) is the first of these in the file: its sentence of that form;
its `sentence` of any length; its sentence of the closest form; its name. (On Intentonomy's validation descriptions
plain names rank better than names inside a template such as "a photo of …", see docs/labels.md.)
"""

import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from intclip.errors import TaxonomyError, reason
from intclip.labels.file_model import ClassEntry, TaxonomyFile, one_line
from intclip.labels.hierarchy import Node, resolve_levels
from intclip.labels.lengths import WORD_RANGES, count_words
from intclip.labels.spelling import fold
from intclip.labels.taxonomy import Taxonomy
from intclip.strict_yaml import parse_yaml

_SUFFIXES = {".yaml", ".yml", ".json"}
_BUILTIN = Path(str(files("intclip.labels"))) / "builtin"


def builtin_taxonomies() -> tuple[str, ...]:
    """Return the names of the built-in taxonomies."""
    return tuple(sorted(path.stem for path in _BUILTIN.glob("*.yaml")))


def load_taxonomy(source: str | os.PathLike[str] | Sequence[Any] | Mapping[str, Any]) -> Taxonomy:
    """Load a built-in taxonomy by name, or your own from a YAML or JSON file (docs/taxonomies.md).

    Args:
        source: A name, a file, labels separated by commas, or what such a file contains, such as a list of labels.

    Raises:
        TaxonomyError: The taxonomy is unknown, or the content is invalid: a cycle, an orphan, a duplicate name, a wrong
            number of sentences, or a sentence outside its word range.
    """
    if isinstance(source, Mapping) or (isinstance(source, Sequence) and not isinstance(source, str | bytes)):
        return parse_taxonomy(source if isinstance(source, Mapping) else list(source), "the given labels")
    if not isinstance(source, str | os.PathLike):
        raise TaxonomyError(f"labels are a {type(source).__name__}; give a list of names, a taxonomy's name, or a file")
    text = os.fspath(source)
    if text in builtin_taxonomies():
        path = _BUILTIN / f"{text}.yaml"
    else:
        path = Path(text)
        if not os.path.isfile(text):  # noqa: PTH113 (Path.is_file raises for long texts)
            if "," in text and path.suffix not in _SUFFIXES:
                return parse_taxonomy([name.strip() for name in text.split(",") if name.strip()], "the given labels")
            near = get_close_matches(text, builtin_taxonomies(), n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise TaxonomyError(
                f"no taxonomy {text!r}: {hint} must be a YAML file, labels separated by commas, or one of: "
                f"{', '.join(builtin_taxonomies())}"
            )
    return parse_taxonomy(_read(path), str(path), name=path.stem)


def _read(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TaxonomyError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise TaxonomyError(f"cannot read {path}: {reason(error)}; check the path") from error
    except ValueError as error:
        raise TaxonomyError(f"{path}: {error}; correct the YAML there") from error


def parse_taxonomy(content: Any, where: str, *, name: str = "custom") -> Taxonomy:
    """Build a taxonomy from the content of a file; see `load_taxonomy`.

    Args:
        content: Parsed YAML or JSON.
        where: The file, for messages.
        name: Default name of the taxonomy.
    """
    if isinstance(content, Mapping) and "layout" in content:
        return Taxonomy.from_dict(content)
    if isinstance(content, Mapping) and "classes" not in content:
        _no_misspelt_keys(content, where)
    top = content if isinstance(content, Mapping) and "classes" in content else {"classes": content}
    try:
        file = TaxonomyFile.model_validate(top)
    except ValidationError as error:
        raise TaxonomyError(one_line(error, top, where)) from error
    classes = file.classes
    entries = [f"{where}: class {number} {c.name!r:.60}" for number, c in enumerate(classes, start=1)]
    _no_duplicates(classes, entries)
    names = tuple(c.name for c in classes)
    nodes = [Node(entry, c.name, c.parent) for entry, c in zip(entries, classes, strict=True)]
    coarser, ancestors = resolve_levels(nodes, file.parents, where)
    if file.level in coarser:
        raise TaxonomyError(f"{where}: two levels are called {file.level!r}; rename one of them")
    _add_listed_sentences(classes, file.sentences, where)
    _check_sentences(classes, entries, where)
    _check_subsets(file.subsets, names, where)
    forms = {
        "fine": names,
        "consolidated": tuple(", ".join((c.name, *ancestors[c.name])) for c in classes),
        "template": tuple(_in_template(c.name, ancestors[c.name]) for c in classes),
    }
    for form in WORD_RANGES:
        forms[form] = tuple(_words_in(c, form) for c in classes)
    return Taxonomy(
        name=file.name or name,
        names=names,
        levels={file.level: names, **coarser},
        parents=ancestors if coarser else {},
        sentence_forms=forms,
        definitions={c.name: c.definition for c in classes if c.definition},
        aliases={alias: c.name for c in classes for alias in c.aliases},
        source=file.source,
        written=tuple(form for form in WORD_RANGES if all(form in c.sentences for c in classes)),
        subsets={key: {part: tuple(members) for part, members in parts.items()} for key, parts in file.subsets.items()},
        exclusive=file.exclusive,
    )


def _in_template(name: str, ancestors: Sequence[str]) -> str:
    return f"An image showing {ancestors[0]}, specifically {name}" if ancestors else f"An image showing {name}"


def _no_misspelt_keys(content: Mapping[Any, Any], where: str) -> None:
    """Reject lists in lines of `name: sentence`: `classes:` or another key was probably meant."""
    known = list(TaxonomyFile.model_fields)
    if set(content) & set(known):
        raise TaxonomyError(f"{where}: no `classes`; list the class names under it")
    for key, value in content.items():
        near = get_close_matches(str(key), known, n=1, cutoff=0.75)
        if isinstance(value, list):
            meant = f"did you mean `{near[0]}`?" if near else "list the classes under `classes`"
            raise TaxonomyError(f"{where}: {key!r} has a list, but is not an entry of a taxonomy; {meant}")
        if isinstance(value, Mapping) and near and not set(value) & set(ClassEntry.model_fields):
            raise TaxonomyError(f"{where}: unknown entry {key!r}; did you mean `{near[0]}`?")


def _no_duplicates(classes: Sequence[ClassEntry], entries: Sequence[str]) -> None:
    owner: dict[str, str] = {}
    for c, entry in zip(classes, entries, strict=True):
        if (key := fold(c.name)) in owner:
            raise TaxonomyError(f"{entry}: duplicate name (also {owner[key]!r}); rename one")
        owner[key] = c.name
    for c, entry in zip(classes, entries, strict=True):
        for alias in c.aliases:
            if (first := owner.setdefault(fold(alias), c.name)) != c.name:
                raise TaxonomyError(f"{entry}: alias {alias!r} also means {first!r}; keep it at one of them")


def _add_listed_sentences(classes: Sequence[ClassEntry], listed: Mapping[str, Sequence[str]], where: str) -> None:
    """Read top-level `sentences`: for each form, K sentences in order of the classes."""
    for form, sentences in listed.items():
        entry = f"{where}: sentences: {form}"
        if len(sentences) != len(classes):
            raise TaxonomyError(
                f"{entry} has {len(sentences)} sentences for {len(classes)} classes; write one for each, in order"
            )
        for c, sentence in zip(classes, sentences, strict=True):
            if form in c.sentences:
                raise TaxonomyError(f"{entry}: class {c.name!r} already has its own sentence; keep one of them")
            c.sentences[form] = sentence


def _check_sentences(classes: Sequence[ClassEntry], entries: Sequence[str], where: str) -> None:
    """Check that each HCI form has sentences for all classes or none, within its word range, all different."""
    for form, (least, most) in WORD_RANGES.items():
        written = [(c, entry) for c, entry in zip(classes, entries, strict=True) if form in c.sentences]
        if written and len(written) < len(classes):
            missing = next(c for c in classes if form not in c.sentences)
            raise TaxonomyError(
                f"{where}: form {form} has {len(written)} sentences for {len(classes)} classes; "
                f"write the one of {missing.name!r}, or remove the form"
            )
        owner: dict[str, str] = {}
        for c, entry in written:
            words = count_words(c.sentences[form])
            if not least <= words <= most:
                raise TaxonomyError(
                    f"{entry}: its {form} sentence has {words} words ({c.sentences[form]!r:.80}); "
                    f"write {least} to {most} words, or use `sentence:`, which may have any length"
                )
            if (first := owner.setdefault(c.sentences[form].casefold(), c.name)) != c.name:
                raise TaxonomyError(f"{entry}: its {form} sentence equals that of {first!r}; make them differ")


def _words_in(c: ClassEntry, form: str) -> str:
    if form in c.sentences:
        return c.sentences[form]
    if c.sentence:
        return c.sentence
    if c.sentences:
        wanted = sum(WORD_RANGES[form])
        return c.sentences[min(c.sentences, key=lambda given: abs(sum(WORD_RANGES[given]) - wanted))]
    return c.name


def _check_subsets(subsets: Mapping[str, Mapping[str, Sequence[str]]], names: Sequence[str], where: str) -> None:
    """Each partition of the classes, such as Intentonomy's by difficulty, has every class once."""
    for key, parts in subsets.items():
        entry = f"{where}: subsets: {key}"
        members = [name for part in parts.values() for name in part]
        for name in members:
            if name not in names:
                raise TaxonomyError(f"{entry}: {name!r} is not a class; correct the name")
            if members.count(name) > 1:
                raise TaxonomyError(f"{entry}: duplicate {name!r}; keep one")
        if missing := [name for name in names if name not in members]:
            raise TaxonomyError(f"{entry}: {missing[0]!r} is not in any part; add it to one")
