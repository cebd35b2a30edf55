"""Strict YAML: safe loading, no duplicate keys, and no octal or sexagesimal numbers.

    load_yaml("batch_size: 024")  ->  {"batch_size": "024"}, which a numeric field reads as 24 (YAML 1.1: 20)

This is the only YAML reader in the package.
"""

import re
from typing import Any

import yaml

# PyYAML does not wrap the Python errors of its constructors: KeyError for "!!bool x", AttributeError for "!!timestamp x".
YAML_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError)

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
# YAML 1.1's patterns without 024 (octal) and 1:30 (sexagesimal); those remain strings.
_INT_PATTERN = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$")
_FLOAT_PATTERN = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)


class DuplicateKeyError(yaml.YAMLError):
    """A key is given twice; other YAML readers silently keep the last value."""


class _StrictLoader(yaml.SafeLoader):
    # JSON writes a character above 0xFFFF as two escapes. PyYAML keeps them as two surrogates, which cannot be written to a file.
    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        try:
            return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le") if isinstance(value, str) else value
        except UnicodeDecodeError:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"half of a character, such as \\ud800 alone, in line {line} is no text") from None

    # Check for duplicates while nodes are composed: a merge (`<<: *base`) later adds keys that the node's own keys may override.
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if (key.tag, key.value) in lines:
                cure = "move the lines of the second into the first" if isinstance(value, yaml.MappingNode) else "keep one of them"
                raise DuplicateKeyError(f"'{key.value}' is given twice, in lines {lines[key.tag, key.value]} and {line}: {cure}")
            lines[key.tag, key.value] = line
        return node


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _FLOAT)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(_FLOAT, _FLOAT_PATTERN, list("-+0123456789."))
_StrictLoader.add_implicit_resolver(_INT, _INT_PATTERN, list("-+0123456789"))


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        one of YAML_ERRORS: the text is not valid YAML, or gives a key twice (`DuplicateKeyError` names both lines).
    """
    return yaml.load(text, _StrictLoader)
