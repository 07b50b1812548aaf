"""YAML as people expect it: ``1e-3`` is a number, a key stands once, and nothing refers back."""

from __future__ import annotations

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads plain values. Without aliases nothing is recursive, or grows as it is read."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Returns the next node. Raises ``YAMLError`` for an alias."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.YAMLError(f"line {mark.line + 1} refers back (*); aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping by text. Raises ``YAMLError`` for a key that is none, or a second."""
        seen = set()
        for key_node, _ in node.value:
            key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise yaml.YAMLError(f"line {line}: the key {key!r} is no text")
            if key in seen:
                raise yaml.YAMLError(f"line {line}: {key!r} stands there twice")
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e-3, which has no point, for text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        YAMLError: If it is none, has a key twice, a key that is no text, or an alias; if a value
            such as a date cannot be, or is nested too deeply.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # odd scalars fail in many ways in there
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error
