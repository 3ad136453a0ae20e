"""YAML 1.2, which DVC writes, read with PyYAML, which follows 1.1: there `1e-6` is a string and `no` is false."""

from __future__ import annotations

import re
from typing import Any

import yaml

from pipeline_lib.core.errors import UserError


def load(text: str, name: str) -> Any:
    """The plain values of a document; errors call it `name`.

    Raises:
        UserError: It is not valid YAML, or a key stands twice in one block.
    """
    loader = Yaml12Loader(text)
    loader.name = name
    try:
        return loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        loader.dispose()


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the YAML 1.2 core schema for booleans and numbers, and duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the parent, but a key that stands twice is an error instead of being overwritten."""
        keys: list[Any] = []
        for key_node, _ in node.value:
            key, mark = self.construct_object(key_node, deep=True), key_node.start_mark
            if key in keys:
                raise UserError(f"{mark.name}: line {mark.line + 1}: key `{key}` stands twice in one block; delete one")
            keys.append(key)
        return super().construct_mapping(node, deep)


Yaml12Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    Yaml12Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _construct_int(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    prefixes = {"0o": 8, "0x": 16}
    return int(node.value, prefixes.get(node.value[:2], 10))  # YAML 1.1 reads 017 as octal


Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
