"""Which settings differ between configurations, by dotted key.

differences([a.to_dict(), b.to_dict()])  ->  {"training.learning_rate": [0.0008, 0.0002]}
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from kava.config.fingerprint import MAY_CHANGE_ON_RESUME, with_later_settings, with_settled_dtype

ABSENT = "(absent)"


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one mapping with dotted keys; lists and empty mappings count as values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(contents: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the dotted keys whose values differ, each with one value per configuration, in the order in which keys first appear."""
    flats = [flatten(content) for content in contents]
    keys = dict.fromkeys(key for flat in flats for key in flat)
    found = {key: [flat.get(key, ABSENT) for flat in flats] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values[1:])}


def named_differences(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str] = ()) -> str:
    """Return the differing settings as part of a sentence, the first three with both values; empty if none differs."""
    found = {key: values for key, values in differences([old, new]).items() if key not in may_change}
    named = "; ".join(f"{key} {before!r}, not {after!r}" for key, (before, after) in list(found.items())[:3])
    return named + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def why_another(recorded: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return what makes a recorded configuration another one than `settings`, as ` (rkv.lambda 0.1, not 0.5)`; empty if nothing does.

    No setting is named that the fingerprint leaves out.
    """
    old, new = (with_settled_dtype(with_later_settings(content)) for content in (recorded, settings))
    found = named_differences(old, new, {*MAY_CHANGE_ON_RESUME, "training.seed"})
    return f" ({found})" if found else ""
