"""Dotted overrides: from the words of a command line to values, and from values into the sections of a configuration.

parse_overrides(["--training.batch_size", "64", "--rkv.lambda=0.3"]) == {"training.batch_size": 64, "rkv.lambda": 0.3}
"""

import copy
import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError

# Keys under this section are names that the user chooses (gsm8k-hard), so dashes stay.
FREE_NAMES = "evaluation.datasets."
# YAML 1.1 wants a dot in the mantissa; people write 8e-4.
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")


def is_safe_name(name: str) -> bool:
    """Whether a name can be part of a path or a word of a command: letters, digits, '_', '.', '-'; not only dots, no '-' in front."""
    return bool(_NAME.fullmatch(name)) and bool(name.strip("."))


def parse_overrides(arguments: list[str], check: Callable[[Iterable[str]], None] | None = None) -> dict[str, Any]:
    """Turn ``--training.batch_size 64 --lora.target_modules q_proj v_proj`` into dotted keys and YAML values.

    Several words after a flag make a list; of one flag given twice the last counts.

    Args:
        arguments: the words.
        check: is shown the keys first: one that is unknown is not said to lack a value.

    Raises:
        UserError: a word belongs to no flag, or a flag has no value.
    """
    words: dict[str, list[str]] = {}
    key: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            key = name if name.startswith(FREE_NAMES) else name.replace("-", "_")
            words[key] = [value] if equals else []
        elif key is None:
            raise UserError(f"unexpected argument '{argument}'; overrides look like --training.batch_size 64")
        else:
            words[key].append(argument)
    if check:
        check(words)
    overrides = {}
    for key, values in words.items():
        if not values:
            raise UserError(f"--{key} needs a value")
        parsed = [_yaml_value(value) for value in values]
        overrides[key] = parsed if len(parsed) > 1 else parsed[0]
    return overrides


def apply_overrides(content: dict[Any, Any], overrides: dict[str, Any], defaults: dict[str, Any]) -> dict[Any, Any]:
    """Return the sections of `content` with dotted `overrides` set.

    A section that is absent starts empty, but one whose keys are the user's from its `defaults`: what is set is added to them.

    Raises:
        UserError: a key leads through something that is no section.
    """
    content = copy.deepcopy(content)
    for key, value in overrides.items():
        *sections, last = key.split(".")
        place, default = content, defaults
        for section in sections:
            default = default.get(section, {})
            if place.get(section) is None:
                place[section] = copy.deepcopy(default) if key.startswith(FREE_NAMES) else {}
            place = place[section]
            if not isinstance(place, dict) or not isinstance(default, dict):
                raise UserError(f"override '{key}': '{section}' holds a value, not a section")
        place[last] = value
    return content


def _yaml_value(text: str) -> Any:
    """A number, truth value, null, or list or mapping in brackets; everything else is the text itself.

    `The answer is:` is YAML for a mapping, and 2024-01-01 for a date, but nobody means that on a command line.
    """
    try:
        value = _json_or_yaml(text)
    except YAML_ERRORS:
        return text
    if isinstance(value, str) and SCIENTIFIC.fullmatch(text):
        return float(text)
    bracketed = isinstance(value, list | dict) and text.lstrip().startswith(("[", "{"))
    quoted = isinstance(value, str) and text.startswith(("'", '"'))
    return value if bracketed or quoted or value is None or isinstance(value, bool | int | float) else text


def _json_or_yaml(text: str) -> Any:
    """YAML reads nearly all of JSON, but not its escapes beyond 16 bits."""
    if text.startswith(("[", "{", '"')):
        try:
            return json.loads(text)
        except ValueError:
            pass
    return load_yaml(text)


def as_flags(overrides: dict[str, Any]) -> list[str]:
    """Overrides as the words that `parse_overrides` reads back to the same values."""
    return [word for key, value in overrides.items() for word in (f"--{key}", _word(value))]


def _word(value: Any) -> str:
    plain = isinstance(value, str) and not value.startswith("--") and parse_overrides(["--key", value]) == {"key": value}
    return value if plain else json.dumps(value)
