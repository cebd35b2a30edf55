"""Settings of the machine, not of a run: numbers in environment variables (docs/QUICK_REFERENCE.md lists them)."""

import os

from kava.errors import UserError


def number(name: str, default: float, unit: str) -> float:
    """Return the number in an environment variable; the default if it is not set or empty.

    Raises:
        UserError: the value is not a number of at least 0.
    """
    text = os.environ.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise UserError(f"{name} is '{text}'; set it to a number of {unit}, or leave it out for {default:g}")
    return value
