"""Write a taxonomy as YAML that `load_taxonomy` reads back unchanged."""

from collections.abc import Sequence
from typing import Any

import yaml

from intclip.labels.file_model import CLASS_LEVEL
from intclip.labels.hierarchy import PARENT_LEVEL
from intclip.labels.lengths import WORD_RANGES
from intclip.labels.taxonomy import Taxonomy


def taxonomy_yaml(taxonomy: Taxonomy, comments: Sequence[str] = ()) -> str:
    """Return a taxonomy as YAML with all levels, sentences, aliases and definitions.

    Args:
        taxonomy: The taxonomy.
        comments: Comment lines at the top, such as who wrote the sentences.
    """
    fine, *coarser = taxonomy.levels
    content: dict[str, Any] = {"name": taxonomy.name}
    if taxonomy.source:
        content["source"] = taxonomy.source
    if taxonomy.exclusive:
        content["exclusive"] = True
    if fine != CLASS_LEVEL:
        content["level"] = fine
    if coarser and coarser != [PARENT_LEVEL]:
        content["parents"] = {level: _parent_level(taxonomy, depth) for depth, level in enumerate(coarser)}
    elif coarser:
        # A single level with the default name needs no declaration, unless its order differs or a class has its name.
        implied = list(dict.fromkeys(taxonomy.parents[name][0] for name in taxonomy.names))
        if implied != list(taxonomy.levels[PARENT_LEVEL]) or set(implied) & set(taxonomy.names):
            content["parents"] = {PARENT_LEVEL: list(taxonomy.levels[PARENT_LEVEL])}
    if taxonomy.subsets:
        content["subsets"] = {key: {p: list(n) for p, n in parts.items()} for key, parts in taxonomy.subsets.items()}
    content["classes"] = [_class(taxonomy, index) for index in range(len(taxonomy))]
    head = "".join(f"# {line}\n" for line in comments)
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10**6)


def _parent_level(taxonomy: Taxonomy, depth: int) -> list[str] | dict[str, str]:
    names = list(taxonomy.levels.values())[depth + 1]
    if depth + 2 == len(taxonomy.levels):
        return list(names)
    above = {ancestors[depth]: ancestors[depth + 1] for ancestors in taxonomy.parents.values()}
    return {name: above[name] for name in names}


def _class(taxonomy: Taxonomy, index: int) -> dict[str, Any]:
    name = taxonomy.names[index]
    entry: dict[str, Any] = {"name": name}
    if aliases := [alias for alias, owner in taxonomy.aliases.items() if owner == name]:
        entry["aliases"] = aliases
    if taxonomy.parents:
        entry["parent"] = taxonomy.parents[name][0]
    if name in taxonomy.definitions:
        entry["definition"] = taxonomy.definitions[name]
    own = {form: taxonomy.sentence_forms[form][index] for form in WORD_RANGES}
    written = {form: own[form] for form in taxonomy.written}
    free = [text for form, text in own.items() if form not in written and text not in {name, *written.values()}]
    if free:
        entry["sentence"] = free[0]
    if written:
        entry["sentences"] = written
    return entry
