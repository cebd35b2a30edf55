"""Dotted overrides: parse them from the command line and apply them to the sections of a configuration.

parse_overrides(["--training.batch_size", "64", "--rkv.lambda=0.3"]) == {"training.batch_size": 64, "rkv.lambda": 0.3}
"""

import copy
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kava.config.strict_yaml import YAML_ERRORS, load_yaml
from kava.errors import UserError

# Keys in this section are names chosen by the user (gsm8k-hard), so dashes are kept.
FREE_NAMES = "evaluation.datasets."
# YAML 1.1 requires a dot in the mantissa, but users write 8e-4.
SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")

_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.-]*")


def is_safe_name(name: str) -> bool:
    """Return whether a name is safe in a path and on a command line: letters, digits, '_', '.', '-'; not only dots, no leading '-'."""
    return bool(_NAME.fullmatch(name)) and bool(name.strip("."))


def parse_overrides(arguments: list[str], check: Callable[[Iterable[str]], None] | None = None) -> dict[str, Any]:
    """Turn ``--training.batch_size 64 --lora.target_modules q_proj v_proj`` into dotted keys and YAML values.

    Several words after a flag become a list. If a flag is given twice, the last one counts. A section given as a mapping is taken apart.

    Args:
        arguments: the words of the command line.
        check: called with all keys first, so that an unknown key is reported as unknown and not as a key without a value.

    Raises:
        UserError: a word does not belong to a flag, or a flag has no value.
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
    return dotted(overrides)


def apply_overrides(content: dict[Any, Any], overrides: dict[str, Any], defaults: dict[str, Any]) -> dict[Any, Any]:
    """Return the sections of `content` with dotted `overrides` set.

    A missing section starts empty. A section whose keys are chosen by the user (`FREE_NAMES`) starts from its `defaults` instead.

    Raises:
        UserError: part of a key names a value, not a section.
    """
    content = copy.deepcopy(content)
    for key, value in dotted(overrides).items():
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


def dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides with a section given as a mapping taken apart, so that its other settings stay: {"loss": {"alpha2_kv": 0}}.

    `evaluation.datasets` is a setting, not a section: a mapping replaces it.
    """
    found: dict[str, Any] = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and f"{key}." != FREE_NAMES and not key.startswith(FREE_NAMES):
            found |= dotted({f"{key}.{name}": setting for name, setting in value.items()})
        else:
            found[key] = value
    return found


def _yaml_value(text: str) -> Any:
    """Return a number, a boolean, null, a bracketed list or mapping, or the content of a quoted text; everything else is returned as text.

    YAML reads `The answer is:` as a mapping and 2024-01-01 as a date; on a command line both are meant as text.
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
    """Parse text as JSON if possible, else as YAML, which reads numbers such as 8e-4 inside a list as text."""
    if text.startswith(("[", "{", '"')):
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except ValueError:
            pass
    return load_yaml(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the mapping; a key given twice is left to the YAML reader, which names it."""
    if len(mapping := dict(pairs)) < len(pairs):
        raise ValueError
    return mapping


def as_flags(overrides: dict[str, Any]) -> list[str]:
    """Return overrides as command-line words that `parse_overrides` reads back to the same values."""
    return [word for key, value in overrides.items() for word in (f"--{key}", _word(value))]


def _word(value: Any) -> str:
    plain = isinstance(value, str) and not value.startswith("--") and parse_overrides(["--key", value]) == {"key": value}
    return value if plain else json.dumps(value)
