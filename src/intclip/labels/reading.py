"""Taxonomies from YAML: a full file with levels and sentences, or as little as a list of names.

A class's words in an HCI form ("11-15", …) are the first of these that the file gives: its own sentence of that form;
its `sentence` of free length; its sentence of the nearest form; its name. (On Intentonomy's validation descriptions
plain names rank better than names inside a template such as "a photo of …", see docs/labels.md.)
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

from intclip.errors import TaxonomyError
from intclip.labels.hierarchy import Node, resolve_levels
from intclip.labels.lengths import WORD_RANGES, count_words
from intclip.labels.taxonomy import Taxonomy
from intclip.strict_yaml import parse_yaml

CLASS_LEVEL = "class"
"""Name of the finest level where a file gives none."""
_TOP_KEYS = ("name", "source", "exclusive", "level", "parents", "classes", "sentences", "subsets")
_CLASS_KEYS = ("name", "parent", "aliases", "definition", "sentence", "sentences")
_BUILTIN = Path(str(files("intclip.labels"))) / "builtin"


def builtin_taxonomies() -> tuple[str, ...]:
    """Names of the taxonomies that come with the package."""
    return tuple(sorted(path.stem for path in _BUILTIN.glob("*.yaml")))


def load_taxonomy(name_or_path: str | os.PathLike[str]) -> Taxonomy:
    """Load a built-in taxonomy by name, or one's own from a YAML or JSON file (docs/taxonomies.md).

    Raises:
        TaxonomyError: There is no such taxonomy, or the file is wrong: a cycle, an orphan, a name twice, a wrong
            number of sentences, or a sentence outside its word range. The message names the file,
            the entry and the remedy.
    """
    text = os.fspath(name_or_path)
    if text in builtin_taxonomies():
        path = _BUILTIN / f"{text}.yaml"
    else:
        path = Path(text)
        if not path.is_file():
            near = get_close_matches(text, builtin_taxonomies(), n=1)
            hint = f"did you mean {near[0]!r}? It" if near else "it"
            raise TaxonomyError(
                f"no taxonomy {text!r}: {hint} must be a YAML file or one of: {', '.join(builtin_taxonomies())}"
            )
    return parse_taxonomy(_read(path), str(path), name=path.stem)


def _read(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise TaxonomyError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise TaxonomyError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise TaxonomyError(f"{path}: {error}; correct the YAML there") from error


@dataclass
class _Class:
    """One class as the file gives it; `entry` says where, for messages."""

    entry: str
    name: str
    parent: str | None = None
    aliases: list[str] = field(default_factory=list)
    definition: str = ""
    sentence: str | None = None
    sentences: dict[str, str] = field(default_factory=dict)


def parse_taxonomy(content: Any, where: str, *, name: str = "custom") -> Taxonomy:
    """Build a taxonomy from the content of a file; see `load_taxonomy`.

    Args:
        content: What YAML or JSON gave.
        where: The file, for messages.
        name: The taxonomy's name if the content gives none.
    """
    if isinstance(content, Mapping) and "layout" in content:
        return Taxonomy.from_dict(content)
    if isinstance(content, Mapping) and "classes" not in content and set(content) & set(_TOP_KEYS):
        raise TaxonomyError(f"{where}: there is no `classes`; list the class names under it")
    if isinstance(content, Mapping) and "classes" not in content:
        _no_misspelt_keys(content, where)
    top = content if isinstance(content, Mapping) and "classes" in content else {"classes": content}
    _known_keys(top, _TOP_KEYS, where)
    classes = list(_classes(top["classes"], where))
    if not classes:
        raise TaxonomyError(f"{where}: there are no classes; list one name a line, each after '- '")
    _no_duplicates(classes, where)
    names = tuple(c.name for c in classes)
    level = _text(top.get("level", CLASS_LEVEL), f"{where}: level")
    nodes = [Node(c.entry, c.name, c.parent) for c in classes]
    coarser, ancestors = resolve_levels(nodes, top.get("parents"), where)
    if level in coarser:
        raise TaxonomyError(f"{where}: two levels are called {level!r}; rename one of them")
    _add_listed_sentences(classes, top.get("sentences"), where)
    _check_sentences(classes, where)
    forms = {
        "fine": names,
        "consolidated": tuple(", ".join((c.name, *ancestors[c.name])) for c in classes),
        "template": tuple(_in_template(c.name, ancestors[c.name]) for c in classes),
    }
    for form in WORD_RANGES:
        forms[form] = tuple(_words_in(c, form) for c in classes)
    return Taxonomy(
        name=_text(top.get("name", name), f"{where}: name"),
        names=names,
        levels={level: names, **coarser},
        parents=ancestors if coarser else {},
        sentence_forms=forms,
        definitions={c.name: c.definition for c in classes if c.definition},
        aliases={alias: c.name for c in classes for alias in c.aliases},
        source=_text(top.get("source", ""), f"{where}: source"),
        written=tuple(form for form in WORD_RANGES if all(form in c.sentences for c in classes)),
        subsets=_subsets(top.get("subsets"), names, where),
        exclusive=_flag(top.get("exclusive", False), f"{where}: exclusive"),
    )


def _in_template(name: str, ancestors: Sequence[str]) -> str:
    return f"An image showing {ancestors[0]}, specifically {name}" if ancestors else f"An image showing {name}"


def _classes(content: Any, where: str) -> Iterator[_Class]:
    if isinstance(content, Mapping):  # name: sentence, or name: null
        content = [{"name": name, **({} if value is None else _as_sentence(value))} for name, value in content.items()]
    if not isinstance(content, Sequence) or isinstance(content, str):
        raise TaxonomyError(f"{where}: classes must be a list of names or `name: sentence` lines, not {content!r:.60}")
    for number, item in enumerate(content, start=1):
        given = item if isinstance(item, Mapping) else {"name": item}
        if isinstance(item, Mapping) and "name" not in item and len(item) == 1:  # - name: sentence
            ((key, value),) = item.items()
            given = {"name": key, **_as_sentence(value)}
        entry = f"{where}: class {number}"
        if "name" not in given:
            raise TaxonomyError(f"{entry} has no name; give it a `name:`")
        name = _text(given["name"], f"{entry}: name")
        entry = f"{entry} {name!r:.60}"
        if not name:
            raise TaxonomyError(f"{entry} is empty; give it a name or remove the entry")
        _known_keys(given, _CLASS_KEYS, entry)
        aliases = given.get("aliases") or []
        if not isinstance(aliases, str | list | tuple):
            raise TaxonomyError(f"{entry}: aliases is {aliases!r:.60}; write one name, or a list of names")
        sentences = given.get("sentences") or {}
        if not isinstance(sentences, Mapping):
            raise TaxonomyError(f"{entry}: sentences must be lines of `form: sentence`, with a form of {_forms()}")
        yield _Class(
            entry=entry,
            name=name,
            parent=None if given.get("parent") is None else _text(given["parent"], f"{entry}: parent"),
            aliases=[_text(a, f"{entry}: alias") for a in ([aliases] if isinstance(aliases, str) else aliases)],
            definition=_text(given.get("definition") or "", f"{entry}: definition"),
            sentence=None if given.get("sentence") is None else _text(given["sentence"], f"{entry}: sentence"),
            sentences={_form(form, entry): _text(s, f"{entry}: sentence {form}") for form, s in sentences.items()},
        )


def _as_sentence(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"sentence": value}


def _no_misspelt_keys(content: Mapping[Any, Any], where: str) -> None:
    """In lines of `name: sentence`, a list has no place: it is what `classes:` or another key was meant to hold."""
    for key, value in content.items():
        near = get_close_matches(str(key), _TOP_KEYS, n=1, cutoff=0.75)
        if isinstance(value, list):
            meant = f"did you mean `{near[0]}`?" if near else "list the classes under `classes`"
            raise TaxonomyError(f"{where}: {key!r} holds a list, but a taxonomy has no such entry; {meant}")
        if isinstance(value, Mapping) and near and not set(value) & set(_CLASS_KEYS):
            raise TaxonomyError(f"{where}: there is no entry {key!r}; did you mean `{near[0]}`?")


def _text(value: Any, entry: str) -> str:
    if isinstance(value, str) and "\0" in value:
        raise TaxonomyError(f"{entry} holds a NUL character; remove it")
    if isinstance(value, list | dict):
        raise TaxonomyError(f"{entry} is {value!r:.60}, not a text; write one line of words")
    if not isinstance(value, str):
        raise TaxonomyError(f"{entry} is {value!r:.60}, which YAML does not read as text; put it in quotes")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise TaxonomyError(f"{entry} is {value!r:.60}, which holds half of a character; write it anew")
    return " ".join(value.split())


def _flag(value: Any, entry: str) -> bool:
    if not isinstance(value, bool):
        raise TaxonomyError(f"{entry} is {value!r:.60}; write true or false")
    return value


def _forms() -> str:
    return ", ".join(WORD_RANGES)


def _form(form: Any, entry: str) -> str:
    if form not in WORD_RANGES:
        raise TaxonomyError(f"{entry}: there is no form {form!r}; write sentences for {_forms()} words")
    return str(form)


def _known_keys(given: Mapping[str, Any], known: Sequence[str], entry: str) -> None:
    if unknown := [str(key) for key in given if key not in known]:
        raise TaxonomyError(f"{entry}: unknown entry {', '.join(unknown)}; known are: {', '.join(known)}")


def _no_duplicates(classes: Sequence[_Class], where: str) -> None:
    owner: dict[str, str] = {}
    for c in classes:
        if c.name.casefold() in owner:
            raise TaxonomyError(f"{c.entry}: the name is there twice (also {owner[c.name.casefold()]!r}); rename one")
        owner[c.name.casefold()] = c.name
    for c in classes:
        for alias in c.aliases:
            if owner.setdefault(alias.casefold(), c.name) != c.name:
                raise TaxonomyError(
                    f"{c.entry}: alias {alias!r} also means {owner[alias.casefold()]!r}; keep it at one of them"
                )


def _add_listed_sentences(classes: Sequence[_Class], listed: Any, where: str) -> None:
    """Top-level `sentences`: for a form, K sentences in order of the classes."""
    if listed is None:
        return
    if not isinstance(listed, Mapping):
        raise TaxonomyError(f"{where}: sentences must be lines of `form:` with a list under each")
    for key, sentences in listed.items():
        entry = f"{where}: sentences: {key}"
        form = _form(key, f"{where}: sentences")
        if not isinstance(sentences, Sequence) or isinstance(sentences, str):
            raise TaxonomyError(f"{entry} must be a list of {len(classes)} sentences, one for each class, in order")
        if len(sentences) != len(classes):
            raise TaxonomyError(
                f"{entry} has {len(sentences)} sentences for {len(classes)} classes; write one for each, in order"
            )
        for c, sentence in zip(classes, sentences, strict=True):
            if form in c.sentences:
                raise TaxonomyError(f"{entry}: class {c.name!r} has its own sentence already; keep one of them")
            c.sentences[form] = _text(sentence, f"{entry}: {c.name}")


def _check_sentences(classes: Sequence[_Class], where: str) -> None:
    """Each HCI form is written for all classes or none, within its word range, and tells the classes apart."""
    for form, (least, most) in WORD_RANGES.items():
        written = [c for c in classes if form in c.sentences]
        if written and len(written) < len(classes):
            missing = next(c for c in classes if form not in c.sentences)
            raise TaxonomyError(
                f"{where}: form {form} has {len(written)} sentences for {len(classes)} classes; "
                f"write the one of {missing.name!r}, or remove the form"
            )
        owner: dict[str, str] = {}
        for c in written:
            words = count_words(c.sentences[form])
            if not least <= words <= most:
                raise TaxonomyError(
                    f"{c.entry}: its {form} sentence has {words} words ({c.sentences[form]!r:.80}); "
                    f"write {least} to {most} words, or give it as `sentence:`, which may have any length"
                )
            first = owner.setdefault(c.sentences[form].casefold(), c.name)
            if first != c.name:
                raise TaxonomyError(f"{c.entry}: its {form} sentence is that of {first!r}; tell the two apart")


def _words_in(c: _Class, form: str) -> str:
    if form in c.sentences:
        return c.sentences[form]
    if c.sentence:
        return c.sentence
    if c.sentences:
        wanted = sum(WORD_RANGES[form])
        return c.sentences[min(c.sentences, key=lambda given: abs(sum(WORD_RANGES[given]) - wanted))]
    return c.name


def _subsets(content: Any, names: Sequence[str], where: str) -> dict[str, dict[str, tuple[str, ...]]]:
    """Partitions of the classes, such as Intentonomy's by difficulty."""
    subsets: dict[str, dict[str, tuple[str, ...]]] = {}
    if content is not None and not isinstance(content, Mapping):
        raise TaxonomyError(f"{where}: subsets must be lines of `name:` with lines of `part: [class, …]` under each")
    for key, parts in (content or {}).items():
        entry = f"{where}: subsets: {key}"
        if not isinstance(parts, Mapping) or not all(isinstance(members, list | tuple) for members in parts.values()):
            raise TaxonomyError(f"{entry} must be lines of `part:` with a list of class names under each")
        members = [_text(name, entry) for part in parts.values() for name in part]
        for name in members:
            if name not in names:
                raise TaxonomyError(f"{entry}: {name!r} is not a class; correct the name")
            if members.count(name) > 1:
                raise TaxonomyError(f"{entry}: {name!r} is there twice; keep one")
        if missing := [name for name in names if name not in members]:
            raise TaxonomyError(f"{entry}: {missing[0]!r} is in no part; add it to one")
        subsets[str(key)] = {str(part): tuple(_text(n, entry) for n in listed) for part, listed in parts.items()}
    return subsets
