"""Messages for pydantic validation errors: the key, the nearest valid name and the given value."""

import re
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kava.config.overrides import FREE_NAMES
from kava.errors import UserError, nearest


def explain(problem: Any, config: type[BaseModel]) -> str:
    """Return one pydantic error as ``key: what is wrong``, with the nearest valid name for an unknown key."""
    location = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{'.'.join(location)}'{_right_name(location, config)}"
    # Parts such as list[str] name a branch of a union, not a key.
    key = ".".join(part for part in location if not re.fullmatch(r"\w+\[.*\]", part))
    message = str(problem["msg"]).removeprefix("Value error, ")
    cure = "; put it in quotes" if problem["type"] == "string_type" and isinstance(problem["input"], bool | int | float) else ""
    return message if not key else f"{key}: {message} (got {_shown(problem['input'])}){cure}"


def refuse_unknown_options(keys: Iterable[str], options: Iterable[str], config: type[BaseModel]) -> None:
    """Refuse a key that is neither one of a command's `options` nor a dotted setting: `--confg` must not be taken for a setting.

    Raises:
        UserError: a key is unknown; the message names the nearest option or setting.
    """
    settings = list(_dotted_names(config))
    for key in keys:
        if key in settings or key.startswith(FREE_NAMES) or any(key.startswith(f"{leaf}.") for leaf in settings if leaf.count(".")):
            continue
        elsewhere = [known for known in settings if known.rpartition(".")[2] == key.rpartition(".")[2]]
        valid = [known for known in settings if known.count(".")] if "." in key else options
        hint = f"; did you mean '--{elsewhere[0]}'?" if elsewhere else nearest(f"--{key}", (f"--{known}" for known in valid))
        raise UserError(f"unknown option '--{key}'{hint}")


def is_text(key: str, config: type[BaseModel]) -> bool:
    """Return whether a dotted key is that of a setting that is a text."""
    return key.startswith(FREE_NAMES) or any(
        key == name and field.annotation in (str, str | None) for name, field in _dotted_fields(config)
    )


def _right_name(location: list[str], config: type[BaseModel]) -> str:
    """Return a hint for an unknown key: the same name in another section, else the nearest name in this section."""
    *section, name = location
    dotted = [known.rpartition(".") for known in _dotted_names(config)]
    elsewhere = [f"{place}.{known}" for place, _, known in dotted if known == name and place]
    return (
        f"; did you mean '{elsewhere[0]}'?"
        if elsewhere
        else nearest(name, [known for place, _, known in dotted if place == ".".join(section)])
    )


def _dotted_names(model: type[BaseModel]) -> Iterator[str]:
    return (key for key, _ in _dotted_fields(model))


def _dotted_fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        yield key, field
        if hasattr(field.annotation, "model_fields"):
            yield from _dotted_fields(cast(type[BaseModel], field.annotation), f"{key}.")


def _shown(value: Any) -> str:
    """Return a short repr, also for integers that are too long to print and for structures that contain themselves."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    try:
        return short.repr(value)
    except ValueError:
        return f"a very long {type(value).__name__}"
