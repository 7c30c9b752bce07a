"""A taxonomy file as pydantic models: which entries there are, what each holds, and how a wrong one is reported."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, StrictBool, ValidationError

from intclip.labels.lengths import WORD_RANGES
from intclip.labels.spelling import spelling

CLASS_LEVEL = "class"
"""Name of the finest level where a file gives none."""
_FORMS = ", ".join(WORD_RANGES)
_HINTS = {
    "name": "give it a name",
    "aliases": "write one name, or a list of names",
    "sentences": f"write lines of `form: sentence` with a form of {_FORMS}; at the top, a list with one for each class",
    "classes": "write a list of names, one a line after '- ', or lines of `name: sentence`",
    "parents": "write lines of `level:` with names, or lines of `name: parent`, under each, fine to coarse",
    "subsets": "write lines of `name:` with lines of `part: [class, …]` under each",
    "exclusive": "write true or false",
}
"""How to mend an entry of the wrong kind."""


def _words(value: Any) -> str:
    if isinstance(value, list | dict):
        raise ValueError(f"is {value!r:.60}, not a text; write one line of words")
    if not isinstance(value, str):
        raise ValueError(f"is {value!r:.60}, which YAML does not read as text; put it in quotes")
    if "\0" in value:
        raise ValueError("holds a NUL character; remove it")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise ValueError(f"is {value!r:.60}, which holds half of a character; write it anew")
    return spelling(value)


def _form(key: Any) -> Any:
    if key not in WORD_RANGES:
        raise ValueError(f"is not a form; write sentences for {_FORMS} words")
    return key


def _level(names: Any) -> Any:
    """A level as lines of `name: parent`."""
    if not isinstance(names, list):
        return names
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ValueError(f"names {twice[0]!r} twice; keep one")
    return dict.fromkeys(map(_words, names))


def _classes(content: Any) -> Any:
    """The short ways to write classes, as a list of mappings."""
    if isinstance(content, Mapping):  # name: sentence, or name: null
        return [{"name": name, **({} if value is None else _as_entry(value))} for name, value in content.items()]
    if isinstance(content, set):  # its order is lost
        raise ValueError("is a set; write a list")
    return [_class(item) for item in content] if isinstance(content, list | tuple) else content


def _class(item: Any) -> Any:
    if not isinstance(item, Mapping):
        return {"name": item}
    if "name" not in item and len(item) == 1:  # - name: sentence
        ((key, value),) = item.items()
        return {"name": key, **_as_entry(value)}
    return item


def _as_entry(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"sentence": value}


Key = Annotated[str, BeforeValidator(str)]
Words = Annotated[str, BeforeValidator(_words)]
Name = Annotated[Words, Field(min_length=1)]
Form = Annotated[str, BeforeValidator(_form)]
Level = Annotated[dict[Name, Name | None], BeforeValidator(_level), Field(min_length=1)]
Names = Annotated[list[Words], BeforeValidator(lambda given: [given] if isinstance(given, str) else given or [])]


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


class ClassEntry(BaseModel, extra="forbid"):
    """One class."""

    name: Name
    parent: Words | None = None
    aliases: Names = []
    definition: Annotated[str, BeforeValidator(lambda given: _words(given or ""))] = ""
    sentence: Words | None = None
    sentences: Annotated[dict[Form, Words], BeforeValidator(_or_empty)] = {}


class TaxonomyFile(BaseModel, extra="forbid"):
    """A whole file."""

    name: Words | None = None
    source: Words = ""
    exclusive: StrictBool = False
    level: Words = CLASS_LEVEL
    parents: Annotated[dict[Key, Level], Field(min_length=1)] | None = None
    classes: Annotated[list[ClassEntry], BeforeValidator(_classes), Field(min_length=1)]
    sentences: Annotated[dict[Form, list[Words]], BeforeValidator(_or_empty)] = {}
    subsets: Annotated[dict[Key, dict[Key, list[Words]]], BeforeValidator(_or_empty)] = {}


def one_line(error: ValidationError, content: Mapping[str, Any], where: str) -> str:
    """The first thing that is wrong with the content of a file: where, what, and how to mend it."""
    problem = error.errors(include_url=False)[0]
    kind, given, place = problem["type"], problem["input"], list(problem["loc"])
    entry = where
    if len(place) > 1 and place[0] == "classes":
        number = int(place[1])
        name = _classes(content["classes"])[number].get("name")
        entry = f"{where}: class {number + 1}" + (f" {name!r:.60}" if isinstance(name, str) else "")
        place = place[2:]
    if kind == "extra_forbidden":
        known = ClassEntry if entry != where else TaxonomyFile
        return f"{entry}: unknown entry {place[-1]}; known are: {', '.join(known.model_fields)}"
    if kind == "missing":
        return f"{entry} has no {place[-1]}; add `{place[-1]}:`"
    steps = [str(step) for step in place if step != "[key]"]
    spot = ": ".join([entry, *steps])
    if kind == "value_error":
        return f"{spot} {problem['ctx']['error']}"
    hint = next((_HINTS[step] for step in reversed(steps) if step in _HINTS), "correct it")
    shown = "empty" if given in (None, "", [], {}) else f"{given!r:.60}"
    return f"{spot} is {shown}; {hint}"
