"""Resolve the levels above a taxonomy's classes, rejecting cycles and orphans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from intclip.errors import TaxonomyError, listed

PARENT_LEVEL = "group"
"""Default name of the level of parents."""


@dataclass(frozen=True)
class Node:
    """A class and its parent; `entry` is its position in the file, for messages."""

    entry: str
    name: str
    parent: str | None


def resolve_levels(
    classes: Sequence[Node], declared: Mapping[str, Mapping[str, str | None]] | None, where: str
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Resolve coarser levels (level name to names) and each class's ancestors, nearest first.

    Args:
        classes: The finest level.
        declared: Level name to its names and their parents, fine to coarse; None makes the classes' parents the one
            coarser level.
        where: The file, for messages.

    Raises:
        TaxonomyError: Parents are cyclic, or a name is an orphan, childless or duplicate in its level.
    """
    levels = declared
    if levels is None:
        parents = [node.parent for node in classes if node.parent is not None]
        levels = {PARENT_LEVEL: dict.fromkeys(parents)} if parents else {}
    if not levels:
        return {}, {node.name: () for node in classes}
    references: list[Mapping[str, str | None]] = [{node.name: node.parent for node in classes}, *levels.values()]
    _refuse_cycles(references, implicit=declared is None, where=where)
    entries = {node.name: node.entry for node in classes}
    for depth, (level, above) in enumerate(levels.items()):
        below = entries if depth == 0 else {n: f"{where}: {list(levels)[depth - 1]} {n!r}" for n in references[depth]}
        for name, parent in references[depth].items():
            known = f"one of {listed(above, 6, quoted=True)}"
            if parent is None:
                raise TaxonomyError(f"{below[name]} is an orphan; give it a parent in level {level}: {known}")
            if parent not in above:
                raise TaxonomyError(
                    f"{below[name]} is an orphan: its parent {parent!r} is not in level {level}; choose {known}"
                )
        used = set(references[depth].values())
        if childless := [name for name in above if name not in used]:
            raise TaxonomyError(f"{where}: {level} {childless[0]!r} has no children; remove it or give it a class")
    last = list(levels)[-1]
    for name, parent in levels[last].items():
        if parent is not None:
            entry = f"{where}: {last} {name!r} is an orphan"
            raise TaxonomyError(f"{entry}: its parent {parent!r} is not in any level; add a level under `parents`")
    ancestors = {}
    for node in classes:
        line, name = [], node.name
        for depth in range(len(levels)):
            name = str(references[depth][name])
            line.append(name)
        ancestors[node.name] = tuple(line)
    return {level: tuple(names) for level, names in levels.items()}, ancestors


def _refuse_cycles(references: Sequence[Mapping[str, str | None]], *, implicit: bool, where: str) -> None:
    """Follow parents within each level until they leave it.

    A name may recur one level up (Intentonomy's intent Health is in group Health). If the level above
    is declared, a step into it leaves; if it is implied by the classes' parents, only a name that is not a class does.
    """
    for depth, names in enumerate(references):
        above = {} if implicit or depth + 1 == len(references) else references[depth + 1]
        for start in names:
            path, name = [start], start
            while (parent := names[name]) in names and parent is not None and parent not in above:
                path.append(parent)
                if parent == start:
                    raise TaxonomyError(f"{where}: cyclic parents: {' → '.join(path)}; remove one of them")
                if parent in path[:-1]:
                    break  # the cycle does not include `start`; it is found from one of its own names
                name = parent
