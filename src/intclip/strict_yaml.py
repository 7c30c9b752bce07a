"""Plain data from YAML, for files that strangers write: no tags, no aliases, no key twice."""

from collections.abc import Hashable
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        # Aliases of aliases grow without bound ("billion laughs"), and no file of ours needs one.
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not allowed", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key_node.value for key_node, _ in node.value]
            twice = next((key for i, key in enumerate(keys) if key in keys[:i]), keys[-1])
            raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
        return mapping


def parse_yaml(text: str) -> Any:
    """Mappings, lists, texts, numbers, booleans, dates and None.

    Raises:
        ValueError: It is not valid YAML, or uses what is not allowed; one line with the place.
    """
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error
