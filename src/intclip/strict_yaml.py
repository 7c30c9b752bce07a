"""Plain data from untrusted YAML: no tags, aliases or duplicate keys."""

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Nested aliases can grow without bound ("billion laughs").
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key_node.value for key_node, _ in node.value]
            again = next((i for i, key in enumerate(keys) if key in keys[:i]), len(keys) - 1)
            mark = node.value[again][0].start_mark
            raise yaml.constructor.ConstructorError(None, None, f"key {keys[again]!r} is given twice", mark)
        return mapping


def parse_yaml(text: str) -> Any:
    """Parse YAML to mappings, lists, strings, numbers, booleans, dates and None.

    Raises:
        ValueError: It is not valid YAML, or uses forbidden features; one line: "line 2, column 1: key 'a' is …".
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise ValueError(_fault(error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: character {error.character:#06x} is not allowed in YAML; remove it") from error
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
    ) as error:  # a date such as 2020-13-01, a number of thousands of digits
        raise ValueError(" ".join(str(error).split())) from error


def _fault(error: yaml.MarkedYAMLError) -> str:
    """Format position and problem, without PyYAML's excerpt of the text."""
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = " ".join((error.problem or "not YAML").split())
    if "'\\t'" in problem:
        return f"{place}there is a tab; indent YAML with spaces"
    began = error.context and start is not None and mark is not None and start.line != mark.line
    return f"{place}{problem}{f' ({error.context} that begins in line {start.line + 1})' if began and start else ''}"
